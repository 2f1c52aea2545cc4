// The way to the server: what it is, its key, and what is said while it is away.

import * as api from "./api";
import { ApiError } from "./api";
import { modelOfNewChats } from "./choices";
import { keyDialog } from "./dialogs";
import { announce, h } from "./dom";
import { toast } from "./toast";
import type { Info } from "./types";

const AGAIN = 1500; // milliseconds between two looks for a server that is away

export class Connection {
  readonly banner = h("div", { class: "banner", role: "alert", hidden: true });
  /** Of the model that the open chat asks, as far as it was ever told. */
  info: Info | null = null;
  /** The model that is being loaded for the open chat. */
  loading: string | null = null;
  private model: string | null = null;
  private readonly known = new Map<string, Info>();
  private looking = false;
  private answered: (info: Info) => void = () => undefined;
  private readonly first = new Promise<Info>((resolve) => (this.answered = resolve));
  private asking = false;

  /** `there` is called whenever the server has (again) told what it is, `changed` when another model of its is shown. */
  constructor(
    private readonly there: () => void,
    private readonly changed: () => void,
  ) {}

  /** What the server is, as soon as it has told that. */
  get told(): Promise<Info> {
    return this.first.then((first) => this.info ?? first);
  }

  async connect(): Promise<void> {
    try {
      const info = await api.info();
      this.known.clear(); // it may be another server than before
      this.known.set(info.name, info);
      this.info = info;
      this.answered(info); // who waits for it reads what is known now
    } catch (error) {
      if (error instanceof ApiError && error.code === "invalid_api_key") return this.askKey();
      return error instanceof ApiError && error.code === "model_loading" ? this.away("The model is being loaded. What you write is kept.") : this.away();
    }
    this.banner.hidden = true;
    this.there();
  }

  /** All models that the server offers. */
  get models(): readonly string[] {
    return this.info?.models ?? [];
  }

  /** The model that a chat asks: its own, else that of new chats, as far as the server has it; null where there is but one. */
  modelOf(own: string | null): string | null {
    const { models } = this;
    if (models.length < 2) return null;
    return [own, modelOfNewChats()].find((name) => name !== null && models.includes(name)) ?? models[0]!;
  }

  /** Whether what is known is of the model that the open chat asks. */
  get isRight(): boolean {
    return this.model === null || this.info?.name === this.model;
  }

  /** Whether the model that the open chat asks is loaded now. */
  async isReady(): Promise<boolean> {
    return this.model === null || (this.isRight && (await api.phase(this.model).catch(() => "away")) === "ready");
  }

  /** Takes the model of the chat that was opened; one that is not loaded is loaded only where `load` says so. */
  async use(model: string | null, load: boolean): Promise<void> {
    this.model = model;
    if (model === null || this.isRight) return;
    const known = this.known.get(model);
    if (known) return this.take(model, known);
    if (this.loading === model || (!load && (await api.phase(model).catch(() => "away")) !== "ready")) return;
    this.loading = model;
    this.changed();
    try {
      this.take(model, await api.info(model));
    } catch (error) {
      if (error instanceof ApiError && error.code === "unreachable") this.away();
      else toast(error instanceof ApiError ? `${error.problem.message} ${error.problem.advice}` : String(error));
    } finally {
      if (this.loading === model) this.loading = null;
      this.changed();
    }
  }

  private take(model: string, info: Info): void {
    this.known.set(model, info);
    if (this.model !== model) return; // another chat was opened meanwhile
    this.info = info;
    this.changed();
  }

  /** The server is away: says so, and connects as soon as it is back. */
  away(words = "The server is away. Nothing is lost; trying again…"): void {
    this.tell(words);
    if (this.looking) return;
    this.looking = true;
    const look = async (): Promise<void> => {
      if (!(await api.alive())) return void setTimeout(() => void look(), AGAIN);
      this.looking = false;
      announce("The server answers");
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
