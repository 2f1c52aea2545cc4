// The other tabs of this browser: what changed is told to all, and who is still there is asked.

import { newId } from "./types";

export type News =
  | { what: "changed"; conversation: string }
  | { what: "removed"; conversation: string }
  | { what: "draft"; conversation: string }
  | { what: "left"; tab: string };

type Told = News | { what: "there?"; tab: string } | { what: "there"; tab: string };

const PATIENCE = 800; // milliseconds that a tab has to say that it is there

export class Tabs {
  /** The name of this tab, for as long as its page is loaded. */
  readonly own = newId();
  private readonly channel = "BroadcastChannel" in window ? new BroadcastChannel("trifocal") : null;
  private readonly asked = new Map<string, () => void>();

  constructor(private readonly hear: (news: News) => void) {
    this.channel?.addEventListener("message", (event: MessageEvent<Told>) => this.take(event.data));
    addEventListener("pagehide", () => this.tell({ what: "left", tab: this.own }));
  }

  tell(news: Told): void {
    this.channel?.postMessage(news);
  }

  /** Whether a tab is still there. Messages reach tabs in the background too, whose clocks hardly run. */
  async isThere(tab: string): Promise<boolean> {
    if (tab === this.own) return true;
    return new Promise((resolve) => {
      const end = (there: boolean): void => {
        clearTimeout(timer);
        this.asked.delete(tab);
        resolve(there);
      };
      const timer = setTimeout(() => end(false), PATIENCE);
      this.asked.set(tab, () => end(true));
      this.tell({ what: "there?", tab });
    });
  }

  private take(told: Told): void {
    if (told.what === "there?") {
      if (told.tab === this.own) this.tell({ what: "there", tab: this.own });
    } else if (told.what === "there") this.asked.get(told.tab)?.();
    else this.hear(told);
  }
}
