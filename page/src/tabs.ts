// The other tabs of this browser: what changed is told to all, and who is still there is asked.

import { newId } from "./types";

export type News =
  | { what: "changed"; conversation: string }
  | { what: "removed"; conversation: string }
  | { what: "draft"; conversation: string }
  | { what: "left"; tab: string };

type Told = News | { what: "there?"; tab: string } | { what: "there"; tab: string };

const PATIENCE = 4000; // milliseconds that a tab has to say that it is there, where there are no locks to tell it

export class Tabs {
  /** The name of this tab, for as long as its page is loaded. */
  readonly own = newId();
  private readonly channel = "BroadcastChannel" in window ? new BroadcastChannel("trifocal") : null;
  private readonly asked = new Map<string, { answer: Promise<boolean>; here: () => void }>();
  private readonly gone = new Set<string>();

  constructor(private readonly hear: (news: News) => void) {
    // held for as long as the page lives, however busy it is; browsers have locks on this machine and over https alone
    void navigator.locks?.request(lockOf(this.own), () => new Promise(() => undefined)).catch(() => undefined);
    this.channel?.addEventListener("message", (event: MessageEvent<Told>) => this.take(event.data));
    addEventListener("pagehide", () => this.tell({ what: "left", tab: this.own }));
  }

  tell(news: Told): void {
    this.channel?.postMessage(news);
  }

  /** Whether a tab is still there. */
  async isThere(tab: string): Promise<boolean> {
    if (tab === this.own) return true;
    if (this.gone.has(tab)) return false;
    if (!navigator.locks) return this.ask(tab);
    const { held = [], pending = [] } = await navigator.locks.query();
    return [...held, ...pending].some((lock) => lock.name === lockOf(tab));
  }

  /** Asks a tab itself. Messages reach tabs in the background too, whose clocks hardly run. */
  private ask(tab: string): Promise<boolean> {
    const asked = this.asked.get(tab);
    if (asked) return asked.answer;
    let here = (): void => undefined;
    const answer = new Promise<boolean>((resolve) => {
      const timer = setTimeout(() => resolve(false), PATIENCE);
      here = () => (clearTimeout(timer), resolve(true));
    }).finally(() => this.asked.delete(tab));
    this.asked.set(tab, { answer, here });
    this.tell({ what: "there?", tab });
    return answer;
  }

  private take(told: Told): void {
    if (told.what === "there?") {
      if (told.tab === this.own) this.tell({ what: "there", tab: this.own });
    } else if (told.what === "there") this.asked.get(told.tab)?.here();
    else {
      if (told.what === "left") this.gone.add(told.tab);
      this.hear(told);
    }
  }
}

function lockOf(tab: string): string {
  return `trifocal tab ${tab}`;
}
