// The page put together: the chats, the one that is open, its composer and its meter, and the server behind them.

import { Adding } from "./adding";
import { chatOfAddress } from "./address";
import { Answering, begin } from "./answering";
import type { Run } from "./answering";
import * as api from "./api";
import { OpenChat } from "./chat";
import { keepModelOfNewChats, keepSettingsOfNewChats, settingsOfNewChats } from "./choices";
import { Composer } from "./composer";
import { Connection } from "./connection";
import { Counting, NOTHING } from "./counting";
import { openDatabase } from "./database";
import { today } from "./days";
import { pictureDialog } from "./dialogs";
import { announce, h, icon, later, logo } from "./dom";
import { Follower } from "./follow";
import { Frame } from "./frame";
import { Header } from "./header";
import { Meter } from "./meter";
import { fetched } from "./pictures";
import { asMarkdown, fileName } from "./report";
import { SettingsPanel } from "./settings";
import { Sidebar } from "./sidebar";
import type { Mark } from "./sidebar";
import { Store } from "./store";
import { Tabs } from "./tabs";
import type { News } from "./tabs";
import { applyTheme } from "./theme";
import { toast } from "./toast";
import { Transcript } from "./transcript";
import { OddFile, exported, handOut, imported } from "./transfer";
import type { AssistantTurn, Conversation, Draft, Info, Look, Picture, Piece, Sample, Settings, UserTurn } from "./types";
import { answerOf, keptPictures, picturesIn, picturesOf, textOf, trimmed } from "./types";
import { welcome } from "./welcome";
import { whole } from "./wire";

const LOST_AGAIN = 5000; // milliseconds between two looks for answers whose tab crashed

class App {
  private readonly store: Store;
  private readonly tabs = new Tabs((news) => void this.hear(news));
  private readonly chat: OpenChat;
  private readonly answering: Answering;
  private readonly connection = new Connection(() => this.connected(), () => this.modelChanged());
  private readonly composer: Composer;
  private readonly adding: Adding;
  private readonly counting: Counting;
  private readonly transcript: Transcript;
  private readonly sidebar: Sidebar;
  private readonly header: Header;
  private readonly panel: SettingsPanel;
  private readonly meter = new Meter();
  private readonly frame: Frame;
  private readonly follower: Follower;
  private readonly send = h("button", { type: "button", class: "send", "aria-label": "Send", title: "Send (Enter)", onClick: () => void this.press() }, icon("send"));
  private editing: Draft["editing"] = null;
  private leftOut = NOTHING;
  private readonly unread = new Set<string>();
  private unsaved = false;
  private drafted = false; // the open chat's draft has been read: before that, saving would write over it
  private typed = 0; // counts changes of what is being written
  private lists = 0;
  private waits = false; // a question waits for its pictures
  private recounts = 0;
  private opening: Promise<void> = Promise.resolve();
  private greeting: { info: Info | null; element: HTMLElement } | null = null;

  constructor(database: Awaited<ReturnType<typeof openDatabase>>) {
    const info = (): Info | null => this.connection.info;
    this.store = new Store(database, this.tabs, (again = false) => toast(again
      ? "There is room again: all is kept."
      : "The browser has no room to keep this; it lasts as long as the page. Export the chats, or delete older ones."));
    this.chat = new OpenChat(this.store, this.tabs.own, () => this.draw(), (conversation) => void (this.opening = this.opened(conversation)));
    this.answering = new Answering(this.store, this.tabs, {
      grown: (run) => this.grown(run),
      changed: (conversation) => this.answered(conversation),
      unreachable: () => this.connection.away(),
      keyNeeded: () => void this.connection.askKey(),
      info,
      settings: (conversation) => conversation.settings ?? settingsOfNewChats(),
      model: (conversation) => this.connection.modelOf(conversation.model),
      loading: (run, model) => run.conversation === this.chat.id && this.transcript.wait(run.turn, `${model} is being loaded…`),
    });
    this.composer = new Composer(this.store, {
      change: () => this.written(),
      send: () => void this.press(true),
      up: () => this.editLast(),
      files: (files) => void this.adding.add(files),
      show: (picture) => this.show(picture.id, true),
      takenAway: (act) => toast("The picture was taken away.", { label: "Undo", act }),
    });
    this.adding = new Adding(this.store, this.composer, () => this.connection.told, () => this.chat.conversation, (chat, picture) => this.addElsewhere(chat, picture));
    this.counting = new Counting(this.store, this.answering, this.meter, info);
    this.transcript = this.makeTranscript();
    this.sidebar = this.makeSidebar();
    this.header = new Header({
      chats: () => this.frame.toggle("talks-open"),
      settings: () => this.frame.toggle("settings-open"),
      rename: (title) => this.rename(this.chat.id, title),
      exportChat: () => void this.exportChat(),
      removeChat: () => void this.remove(this.chat.id),
      choose: (model) => this.choose(model),
    });
    this.panel = this.makePanel();
    const toEnd = h("div", { class: "to-end-place" });
    this.frame = new Frame(
      { sidebar: this.sidebar.element, header: this.header.element, banner: this.connection.banner, notices: this.adding.notices, composer: this.composer, send: this.send, meter: this.meter.element, toEnd, settings: this.panel.element },
      { add: (files) => void this.adding.add(files), fresh: () => this.fresh(), search: () => this.sidebar.focusSearch(), escape: () => this.escape() },
    );
    this.follower = new Follower(this.frame.scroll, this.frame.content, () => this.answering.in(this.chat.id) !== undefined);
    toEnd.append(this.follower.button);
    this.follower.watch(this.frame.content, this.frame.foot);
    addEventListener("pagehide", () => this.saveDraftNow());
    addEventListener("popstate", () => {
      const id = chatOfAddress();
      if (id && id !== this.chat.id) void this.switchTo(() => this.chat.goBack(id));
    });
    addEventListener("beforeunload", (event) => this.store.holds && event.preventDefault());
    addEventListener("unhandledrejection", ({ reason }) => toast(`This did not work: ${reason instanceof Error ? reason.message : String(reason)}`));
  }

  async start(): Promise<void> {
    await this.chat.start();
    await this.opening;
    this.frame.show(); // only now: what is typed before would be lost
    this.composer.focus();
    if (this.chat.conversation.turns.length) this.follower.toEnd();
    void this.store.tidy();
    void this.answering.mend();
    setInterval(() => void this.mendHere(), LOST_AGAIN);
    if (!this.store.lasting) toast("This browser keeps nothing here: the chat lasts as long as the page.");
    await this.connection.connect();
  }

  // ------------------------------------------------------------------ parts

  private makeTranscript(): Transcript {
    const ask = (turn: AssistantTurn, more = false): void => {
      this.follower.toEnd();
      const { id } = this.chat;
      void this.chat.edit((found) => begin(found, turn.id, more, this.tabs.own)).then(() => this.answering.ask(id, turn.id, more));
    };
    return new Transcript(this.store, this.tabs.own, {
      edit: (turn) => this.edit(turn),
      remove: (turn) => void this.chat.removeQuestion(turn),
      askAgain: (turn) => void this.chat.answerTo(turn).then(ask),
      keep: (turn, picture, keep) => {
        announce(keep ? "The picture is kept" : "The picture is left out");
        void this.chat.keepPicture(turn, picture, keep).then(() => this.recount());
      },
      show: (id) => this.show(id),
      again: (turn) => ask(turn),
      goOn: (turn) => ask(turn, true),
      choose: (turn, at) => void this.chat.change(turn, (found) => (found.shown = at)).then(() => this.recount()),
      change: (turn, text) => void this.chat.rewrite(turn, text).then(() => this.recount()),
      branch: (turn) => void this.chat.branch(turn),
      removeAnswer: (turn) => void this.chat.removeAnswer(turn).then(() => this.recount()),
      dontWait: (turn) => void this.chat.change(turn, (found) => {
        for (const answer of found.answers) Object.assign(answer, { waiting: false, stopped: "It was not asked." });
      }),
      look: (turn) => this.look(turn),
    });
  }

  private makeSidebar(): Sidebar {
    return new Sidebar({
      fresh: () => this.fresh(),
      open: (id) => void this.switchTo(() => this.chat.open(id)),
      rename: (id, title) => this.rename(id, title),
      remove: (id) => void this.remove(id),
      search: (words) => this.store.search(words),
      save: () => void exported(this.store).then((blob) => handOut(blob, `trifocal-chats-${today()}.json`)),
      read: (file) => void this.import(file),
      close: () => this.frame.toggle("talks-open", false),
    });
  }

  private makePanel(): SettingsPanel {
    return new SettingsPanel(() => this.connection.info, {
      get: (ofNewChats) => (ofNewChats ? settingsOfNewChats() : this.settings),
      set: (ofNewChats, settings) => {
        if (ofNewChats) keepSettingsOfNewChats(settings);
        else {
          this.chat.conversation.settings = settings; // at once; the store follows
          void this.chat.setSettings(settings);
        }
        this.recount();
      },
      own: () => this.chat.conversation.settings !== null,
      reset: () => {
        this.chat.conversation.settings = null;
        void this.chat.setSettings(null);
        this.recount();
      },
      close: () => this.frame.toggle("settings-open", false),
    });
  }

  private get settings(): Settings {
    return this.chat.conversation.settings ?? settingsOfNewChats();
  }

  // ------------------------------------------------------------------ what happens elsewhere

  private connected(): void {
    this.modelChanged();
    void this.connection.use(this.model, false);
    void this.answering.askWaiting();
  }

  private modelChanged(): void {
    const { info } = this.connection;
    if (!info) return;
    this.transcript.explains = info.engine.explains || (info.engine.explains_not ?? "This engine can't tell where it looked.");
    document.title = `${info.name} · Trifocal`;
    this.panel.takeWritten();
    this.panel.draw();
    this.draw();
    this.recount();
  }

  /** The model that the open chat asks; null where the server has but one. */
  private get model(): string | null {
    return this.connection.modelOf(this.chat.conversation.model);
  }

  /** Has the open chat, and every new one, ask this model from now on. */
  private choose(model: string): void {
    keepModelOfNewChats(model);
    announce(`This chat asks ${model} now`);
    void this.chat.setModel(model).then(() => this.connection.use(model, true));
  }

  private async hear(news: News): Promise<void> {
    if (news.what === "left") return this.answering.mend();
    const here = news.conversation === this.chat.id;
    if (news.what === "removed" && here) {
      const { pieces } = this.composer;
      this.chat.show(null);
      this.composer.pieces = pieces;
      this.written();
      toast("This chat was deleted in another tab. What you were writing is here.");
    } else if (news.what === "draft" && here && this.drafted && !this.unsaved) {
      await this.takeDraft(false);
    } else if (news.what === "changed" && here) {
      const found = await this.store.load(news.conversation);
      await this.lookUp(found);
      this.chat.take(found);
      this.recount();
    }
    void this.drawSidebar();
  }

  private async mendHere(): Promise<void> {
    const waits = this.chat.conversation.turns.some((turn) => turn.role === "assistant" && turn.answers.some((answer) => answer.writer && answer.writer !== this.tabs.own));
    if (waits) await this.answering.mend();
  }

  private grown(run: Run): void {
    if (run.conversation === this.chat.id) this.transcript.grow(run.turn, run.text);
  }

  private answered(conversation: Conversation): void {
    const running = this.answering.in(conversation.id) !== undefined;
    if (conversation.id !== this.chat.id && !running) this.unread.add(conversation.id);
    this.chat.take(conversation);
    void this.drawSidebar();
    if (running) return;
    this.recount();
    const last = conversation.turns.findLast((turn) => turn.role === "assistant");
    if (conversation.id === this.chat.id && last) announce(`Answer: ${answerOf(last).text}`);
  }

  // ------------------------------------------------------------------ asking

  /** The round button: sends, or stops what is under way. From the keyboard it only sends. */
  private async press(byKey = false): Promise<void> {
    if (this.answering.in(this.chat.id)) {
      if (!byKey) this.answering.stop(this.chat.id);
      return;
    }
    if (this.composer.empty) return this.composer.focus();
    if (this.chat.conversation.turns.some((turn) => turn.role === "assistant" && answerOf(turn).writer)) return toast("Another tab is writing an answer in this chat; it is sent when that has ended.");
    if (this.adding.busy && !(await this.withPictures())) return;
    const pieces = trimmed(this.composer.pieces);
    const { editing } = this;
    const { id } = this.chat;
    this.editing = null;
    this.unsaved = true;
    this.composer.pieces = editing?.before ?? [];
    this.drawNotices();
    const answer = await this.chat.say(pieces, editing?.turn ?? null, this.model);
    if (id === this.chat.id) this.saveDraftNow();
    if (!answer) return this.giveBack(pieces);
    this.follower.toEnd();
    announce("Answering");
    await this.answering.ask(id, answer.id);
  }

  /** Waits for the pictures that are on their way into the question; whether it is to be sent then. It never goes without them. */
  private async withPictures(): Promise<boolean> {
    if (this.waits) return false;
    this.waits = true;
    const { id } = this.chat;
    toast("This is sent as soon as its pictures are there.");
    const all = await this.adding.allThere();
    this.waits = false;
    return all && id === this.chat.id && !this.answering.in(id);
  }

  /** The chat of a question was deleted in another tab while it was sent. */
  private giveBack(pieces: Piece[]): void {
    this.composer.pieces = [...pieces, ...this.composer.pieces];
    this.written();
    toast("This chat was deleted in another tab. What you asked is in the field again.");
  }

  private async look(turn: AssistantTurn): Promise<{ look: Look; pictures: string[] }> {
    const { turns } = this.chat.conversation;
    const asked = turns.slice(0, turns.indexOf(turns.find((each) => each.id === turn.id)!) + 1);
    const look = await api.explain(await this.answering.asked(this.chat.conversation, asked));
    const sent = asked.flatMap((each) => (each.role === "user" ? keptPictures(each) : []));
    // the server tells of those that it kept, and it leaves out the oldest first
    return { look, pictures: look.images.length ? sent.slice(-look.images.length) : [] };
  }

  private edit(turn: UserTurn): void {
    this.editing = { turn: turn.id, before: this.editing?.before ?? this.composer.pieces };
    this.composer.pieces = turn.pieces;
    this.composer.focus();
    this.drawNotices();
    this.written();
  }

  private editLast(): void {
    const last = this.chat.conversation.turns.findLast((turn) => turn.role === "user");
    if (last?.role === "user" && !this.answering.in(this.chat.id)) this.edit(last);
  }

  private stopEditing(): void {
    this.composer.pieces = this.editing?.before ?? [];
    this.editing = null;
    this.drawNotices();
    this.written();
  }

  private escape(): boolean {
    if (this.answering.in(this.chat.id)) this.answering.stop(this.chat.id);
    else if (this.editing) this.stopEditing();
    else return false;
    return true;
  }

  // ------------------------------------------------------------------ what is being written

  private written(): void {
    this.typed += 1;
    this.unsaved = true;
    this.saveDraft();
    this.recount();
    this.drawSend();
  }

  private readonly saveDraft = later(250, () => this.saveDraftNow());

  private saveDraftNow(): void {
    if (!this.unsaved || !this.drafted) return;
    this.unsaved = false;
    void this.store.keepDraft(this.chat.conversation, { pieces: this.composer.pieces, editing: this.editing }).then(() => this.drawSidebar());
  }

  /** Shows the draft that the store has. What was typed while it was read stays: behind it on opening, instead of it else. */
  private async takeDraft(opening: boolean, before = this.typed): Promise<void> {
    const { id } = this.chat;
    const draft = await this.store.draft(id);
    await this.store.fetch(picturesOf([...draft.pieces, ...(draft.editing?.before ?? [])]));
    const meanwhile = this.typed !== before;
    if (id !== this.chat.id || (meanwhile && !opening)) return;
    const pieces = meanwhile ? [...draft.pieces, ...this.composer.pieces] : draft.pieces;
    this.drafted = true;
    this.editing = draft.editing;
    const focused = document.activeElement === this.composer.field;
    if (JSON.stringify(pieces) !== JSON.stringify(this.composer.pieces)) this.composer.pieces = pieces;
    if (focused) this.composer.focus();
    this.drawNotices();
    if (meanwhile) this.written();
    this.drawSend();
    this.recount();
  }

  private async addElsewhere(chat: Conversation, picture: Picture): Promise<boolean> {
    const there = await this.store.editDraft(chat, (draft) => ({ ...draft, pieces: [...draft.pieces, { picture: picture.id }] }));
    await this.hear({ what: "draft", conversation: chat.id }); // it may have been opened again meanwhile
    return there;
  }

  private async sample(sample: Sample): Promise<void> {
    const { id } = this.chat;
    const picture = await fetched(sample.picture, `${sample.title}.png`);
    if (id === this.chat.id) await this.adding.add([picture]);
    if (id !== this.chat.id) return; // another chat was opened meanwhile
    if (!textOf(this.composer.pieces).trim()) this.composer.pieces = [...this.composer.pieces, { text: ` ${sample.question}` }];
    this.composer.focus();
    this.written();
  }

  // ------------------------------------------------------------------ chats

  private async opened(conversation: Conversation): Promise<void> {
    const { typed } = this;
    this.editing = null;
    this.unsaved = this.drafted = false;
    this.leftOut = NOTHING;
    this.unread.delete(conversation.id);
    this.composer.pieces = [];
    this.frame.toggle("talks-open", false);
    await this.lookUp(conversation);
    if (conversation.id !== this.chat.id) return;
    this.draw();
    if (conversation.turns.length) this.follower.toEnd();
    else this.follower.toStart();
    this.panel.draw();
    void this.connection.use(this.model, false);
    await this.takeDraft(true, typed);
    this.composer.focus();
    this.recount();
  }

  /** Looks up all pictures of a conversation, before it is shown. */
  private async lookUp(conversation: Conversation | null): Promise<void> {
    await this.store.fetch(conversation ? picturesIn(conversation) : []);
  }

  private async switchTo(act: () => Promise<void> | void): Promise<void> {
    await this.opening.catch(() => undefined); // what was typed before a chat was all there belongs to it
    this.saveDraftNow();
    await act();
    await this.drawSidebar();
  }

  private fresh(): void {
    void this.switchTo(() => this.chat.show(null));
  }

  private rename(id: string, title: string): void {
    const named = (found: Conversation): void => void Object.assign(found, { title, named: true });
    void (id === this.chat.id ? this.chat.edit(named) : this.store.edit(id, named)).then(() => this.drawSidebar());
  }

  private async remove(id: string): Promise<void> {
    this.answering.stop(id);
    const gone = await this.store.remove(id);
    if (id === this.chat.id) {
      const next = (await this.store.list())[0];
      this.unsaved = false;
      this.chat.show(next ? await this.store.load(next.id) : null);
    }
    await this.drawSidebar();
    if (!gone) return;
    toast("The chat is deleted.", {
      label: "Undo",
      act: () => void this.store.restore(gone.conversation, gone.draft).then(() => this.switchTo(() => this.chat.open(id))),
    });
  }

  private async exportChat(): Promise<void> {
    const { conversation } = this.chat;
    handOut(await asMarkdown(conversation, this.connection.info?.name ?? "", this.store), fileName(conversation.title, ".md"));
  }

  private async import(file: File): Promise<void> {
    try {
      const { added, known, first } = await imported(file, this.store);
      const chats = (count: number): string => `${count} ${count === 1 ? "chat" : "chats"}`;
      toast([added || !known ? `${chats(added)} imported.` : "", known ? `${chats(known)} of the file ${known === 1 ? "was" : "were"} here already.` : ""].filter(Boolean).join(" "));
      if (first) await this.switchTo(() => this.chat.open(first));
    } catch (error) {
      if (!(error instanceof OddFile)) console.info("not imported:", error);
      toast(error instanceof OddFile ? error.message : `${file.name} could not be imported; nothing was changed.`);
    }
  }

  private show(id: string, straight = false): void {
    const picture = this.store.picture(id);
    if (picture) pictureDialog(picture, this.store.url(id), () => whole(picture).then((data) => api.preview(data, this.model)), straight);
  }

  // ------------------------------------------------------------------ drawing

  private recount(): void {
    this.recounts += 1;
    this.meter.busy(true);
    this.countLater();
  }

  private readonly countLater = later(250, () => {
    const { recounts } = this;
    void this.count().finally(() => this.meter.busy(recounts !== this.recounts));
  });

  private async count(): Promise<void> {
    const { conversation } = this.chat;
    if (this.answering.in(conversation.id)) return;
    // a chat that is only read loads no model; once somebody writes in it, its model counts
    if (this.composer.empty && !(await this.connection.isReady())) return this.meter.show(null, []);
    if (!this.connection.isRight) {
      this.meter.show(null, []);
      return this.connection.use(this.model, true);
    }
    const draft = this.composer.empty ? [] : trimmed(this.composer.pieces);
    const leftOut = await this.counting.count(conversation, draft, this.editing?.turn ?? null, this.settings.sampling.max_tokens);
    if (!leftOut || conversation.id !== this.chat.id) return;
    this.leftOut = leftOut;
    this.transcript.draw(this.chat.conversation.turns, leftOut);
  }

  private draw(): void {
    const { conversation } = this.chat;
    const { model } = this;
    this.header.draw(conversation.title, { info: this.connection.info, model, loading: model !== null && this.connection.loading === model }, this.chat.isKept);
    this.transcript.draw(conversation.turns, this.leftOut);
    const wanted = conversation.turns.length ? this.transcript.element : this.welcomed();
    if (this.frame.content.firstChild !== wanted) this.frame.content.replaceChildren(wanted);
    this.frame.busy(this.answering.in(conversation.id) !== undefined);
    this.drawSend();
    this.drawNotices();
    void this.drawSidebar();
  }

  private welcomed(): HTMLElement {
    const { info } = this.connection;
    if (this.greeting?.info !== info) this.greeting = { info, element: welcome(info, (sample) => void this.sample(sample)) };
    return this.greeting!.element;
  }

  private async drawSidebar(): Promise<void> {
    const mine = ++this.lists;
    const list = await this.store.list();
    if (mine !== this.lists) return; // a later one draws
    const marks = new Map<string, Mark>([...this.unread].map((id) => [id, "answered"]));
    for (const run of this.answering.runs.values()) marks.set(run.conversation, "answering");
    this.sidebar.draw(list, this.chat.id, marks);
  }

  private drawSend(): void {
    const busy = this.answering.in(this.chat.id) !== undefined;
    const label = busy ? "Stop" : "Send";
    this.send.disabled = !busy && this.composer.empty;
    if (this.send.getAttribute("aria-label") === label) return;
    this.send.replaceChildren(icon(busy ? "stop" : "send"));
    this.send.setAttribute("aria-label", label);
    this.send.title = busy ? "Stop (Esc)" : "Send (Enter)";
  }

  private drawNotices(): void {
    const shown = this.adding.notices.querySelector(".editing");
    if (this.editing && !shown) {
      this.adding.notices.append(h("div", { class: "editing" }, "Sending replaces the question and what follows it.",
        h("button", { type: "button", class: "text-button", onClick: () => this.stopEditing() }, "Leave it as it was")));
    } else if (!this.editing) shown?.remove();
  }
}

applyTheme();
document.body.append(h("div", { class: "loading" }, logo()));
const outdated = (): void => {
  document.body.prepend(h("div", { class: "banner", role: "alert" }, h("span", {}, "Another tab shows another version of this page. Close the older tabs, or load this one again."),
    h("button", { type: "button", onClick: () => location.reload() }, "Load it again")));
};
void openDatabase(outdated).then((database) => new App(database).start());
