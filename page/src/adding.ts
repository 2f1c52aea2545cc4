// Pictures on their way into a question: files taken one after the other, what was done to them, what is wrong with them.

import type { Composer } from "./composer";
import { h, megabytes, plural } from "./dom";
import { take } from "./pictures";
import type { Store } from "./store";
import { toast } from "./toast";
import type { Conversation, Info, Limits, Picture } from "./types";

const SLOW = 500; // milliseconds after which it is said what is waited for

export class Adding {
  readonly notices = h("div", { class: "notices" });
  private readonly progress = h("p", { class: "adding", role: "status", hidden: true });
  private queue: Promise<void> = Promise.resolve();
  private waiting = 0;
  private refused = 0;

  constructor(
    private readonly store: Store,
    private readonly composer: Composer,
    private readonly info: () => Promise<Info>,
    /** The open chat. */
    private readonly chat: () => Conversation,
    /** Puts a picture into what is being written in a chat that is not open any more; whether that chat is still there. */
    private readonly elsewhere: (chat: Conversation, picture: Picture) => Promise<boolean>,
  ) {
    this.notices.append(this.progress);
  }

  /** Adds the pictures of these files to the chat that is open now, after those that are being added. */
  add(files: Iterable<File>): Promise<void> {
    const given = [...files];
    const chat = this.chat();
    this.waiting += 1;
    this.queue = this.queue
      .then(() => this.addNow(given, chat))
      .catch((error: unknown) => this.refuse(`${given.map((file) => file.name).join(", ")} could not be added.`, String(error)))
      .finally(() => (this.waiting -= 1));
    return this.queue;
  }

  /** Whether pictures are on their way into the question. */
  get busy(): boolean {
    return this.waiting > 0;
  }

  /** Waits for all that are on their way, with those that come meanwhile; whether all of them came. */
  async allThere(): Promise<boolean> {
    const { refused } = this;
    while (this.busy) await this.queue;
    return this.refused === refused;
  }

  private async addNow(files: readonly File[], chat: Conversation): Promise<void> {
    this.progress.textContent = "The pictures are added as soon as the server tells what it takes…";
    const slow = setTimeout(() => (this.progress.hidden = false), SLOW);
    try {
      const { limits } = await this.info();
      clearTimeout(slow);
      await this.takeAll(files, limits, chat);
    } finally {
      clearTimeout(slow);
      this.progress.hidden = true;
    }
    this.composer.field.focus();
  }

  private async takeAll(files: readonly File[], limits: Limits, chat: Conversation): Promise<void> {
    const shrunk: { file: File; picture: Picture }[] = [];
    for (const [at, file] of files.entries()) {
      this.progress.hidden = files.length < 2;
      this.progress.textContent = `Adding picture ${at + 1} of ${files.length}…`;
      const taken = await take(file, limits);
      if ("problem" in taken) {
        this.refuse(taken.problem.message, taken.problem.advice);
        continue;
      }
      await this.store.keep(taken.picture);
      await this.insert(taken.picture, chat);
      if (taken.picture.note.includes("made smaller")) shrunk.push({ file, picture: taken.picture });
      else if (taken.picture.note) toast(`${taken.picture.name}: ${taken.picture.note}.`);
    }
    if (shrunk.length) this.tellShrunk(shrunk);
  }

  /** Puts a picture into the question that it was added to, whichever chat is open by now. */
  private async insert(picture: Picture, chat: Conversation): Promise<void> {
    if (chat.id === this.chat().id) return this.composer.insert(picture);
    const there = await this.elsewhere(chat, picture);
    toast(there ? `${picture.name} is in the chat that it was added to.` : `${picture.name} was not added: its chat is deleted.`);
  }

  private tellShrunk(shrunk: { file: File; picture: Picture }[]): void {
    const before = megabytes(shrunk.reduce((sum, { file }) => sum + file.size, 0));
    const after = megabytes(shrunk.reduce((sum, { picture }) => sum + picture.blob.size, 0));
    const what = shrunk.length === 1 ? `${shrunk[0]!.picture.name} was` : `${plural(shrunk.length, "picture")} were`;
    toast(`${what} made as small as the model can use: ${before} to ${after}.`, {
      label: shrunk.length === 1 ? "Keep the original" : "Keep the originals",
      act: () => void this.keepOriginals(shrunk),
      seconds: 12,
    });
  }

  private async keepOriginals(shrunk: { file: File; picture: Picture }[]): Promise<void> {
    const info = await this.info();
    for (const { file, picture } of shrunk) {
      const taken = await take(file, info.limits, true);
      if ("problem" in taken) this.refuse(taken.problem.message, taken.problem.advice);
      else await this.store.keep({ ...taken.picture, id: picture.id });
    }
    this.composer.redraw();
    toast("The originals are kept and sent.");
  }

  private refuse(message: string, advice: string): void {
    this.refused += 1;
    const notice = h("div", { class: "problem", role: "alert" }, h("strong", {}, message), " ", advice,
      h("div", { class: "actions" }, h("button", { type: "button", onClick: () => notice.remove() }, "Dismiss")));
    this.notices.append(notice);
  }
}
