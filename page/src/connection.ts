// The way to the server: what it is, its key, and what is said while it is away.

import * as api from "./api";
import { ApiError } from "./api";
import { keyDialog } from "./dialogs";
import { announce, h } from "./dom";
import type { Info } from "./types";

const AGAIN = 1500; // milliseconds between two looks for a server that is away

export class Connection {
  readonly banner = h("div", { class: "banner", role: "alert", hidden: true });
  info: Info | null = null;
  private looking = false;
  private tried: () => void = () => undefined;
  private readonly first = new Promise<void>((resolve) => (this.tried = resolve));
  private asking = false;

  /** `there` is called whenever the server has (again) told what it is. */
  constructor(private readonly there: () => void) {}

  /** What the server is, once it was asked; null where it is away. */
  get told(): Promise<Info | null> {
    return this.first.then(() => this.info);
  }

  async connect(): Promise<void> {
    try {
      this.info = await api.info().finally(this.tried);
    } catch (error) {
      if (error instanceof ApiError && error.code === "invalid_api_key") return this.askKey();
      return this.away();
    }
    this.banner.hidden = true;
    this.there();
  }

  /** The server is away: says so, and connects as soon as it is back. */
  away(): void {
    this.tell("The server is away. Nothing is lost; trying again…");
    if (this.looking) return;
    this.looking = true;
    const look = async (): Promise<void> => {
      if (!(await api.alive())) return void setTimeout(() => void look(), AGAIN);
      this.looking = false;
      announce("The server is back");
      await this.connect();
    };
    setTimeout(() => void look(), AGAIN);
  }

  async askKey(): Promise<void> {
    if (this.asking) return;
    this.asking = true;
    const key = await keyDialog();
    this.asking = false;
    if (key === null) return this.tell("A key is needed to go on.", "Enter the key", () => void this.askKey());
    api.setKey(key);
    this.banner.hidden = true;
    await this.connect();
  }

  tell(words: string, label?: string, act?: () => void): void {
    this.banner.replaceChildren(h("span", {}, words), label && act ? h("button", { type: "button", onClick: act }, label) : "");
    this.banner.hidden = false;
  }
}
