// The page put together: one conversation at a time, its composer, its meter, and the server behind it.

import * as api from "./api";
import { ApiError } from "./api";
import { Composer } from "./composer";
import { cameraDialog, helpDialog, keyDialog, previewDialog, toast } from "./dialogs";
import { announce, h, icon, iconButton, later, logo } from "./dom";
import { Meter } from "./meter";
import { fetched, shrunk, take } from "./pictures";
import { SettingsPanel } from "./settings";
import { Sidebar } from "./sidebar";
import { Store, loadSettings, read, write } from "./store";
import { applyTheme, themeButton } from "./theme";
import { Transcript } from "./transcript";
import { exported, imported } from "./transfer";
import type { Answer, AssistantTurn, Conversation, Info, Piece, Sample, Turn, UserTurn } from "./types";
import { answerOf, newId, picturesOf, textOf } from "./types";
import { welcome } from "./welcome";
import { blank, messagesOf, whole } from "./wire";

const SAVE_EVERY = 600; // milliseconds between two savings of an answer that grows
const CURRENT = "trifocal.current";

class App {
  private info: Info | null = null;
  private conversations: Conversation[] = [];
  private current: Conversation = fresh();
  private growing: { turn: AssistantTurn; stop: AbortController } | null = null;
  private editing: { turn: string; draft: Piece[] } | null = null;
  private counting: AbortController | null = null;
  private readonly forgotten = new Set<string>();

  private readonly settings = loadSettings();
  private readonly composer: Composer;
  private readonly transcript: Transcript;
  private readonly sidebar: Sidebar;
  private readonly panel: SettingsPanel;
  private readonly meter = new Meter();
  private readonly banner = h("div", { class: "banner", role: "alert", hidden: true });
  private readonly title = h("h1", { class: "title" }, "New chat");
  private readonly notices = h("div", { class: "notices" });
  private readonly scroll = h("main", { class: "scroll", id: "main", tabIndex: -1 });
  private readonly send = h("button", { type: "button", class: "send", "aria-label": "Send", title: "Send (Enter)", onClick: () => this.press() }, icon("send"));
  private readonly root = h("div", { class: "app" });

  constructor(private readonly store: Store) {
    this.composer = new Composer(store, {
      change: () => this.written(),
      send: () => void this.press(true),
      up: () => this.editLast(),
      files: (files) => void this.add(files),
      show: (picture) => this.show(picture.id),
    });
    this.transcript = new Transcript(store, {
      edit: (turn) => this.edit(turn),
      remove: (turn) => this.remove(turn),
      again: (turn) => void this.again(turn),
      goOn: (turn) => void this.run(turn, true),
      choose: (turn, at) => this.change(() => (turn.shown = at)),
      keep: (turn, picture, keep) => this.keep(turn, picture, keep),
      show: (id) => this.show(id),
      look: (turn) => this.look(turn),
    });
    this.sidebar = new Sidebar({
      fresh: () => this.open(fresh()),
      open: (id) => this.open(this.conversations.find((each) => each.id === id) ?? fresh()),
      rename: (id, title) => this.rename(id, title),
      remove: (id) => void this.forget(id),
      save: () => void this.export(),
      read: (file) => void this.import(file),
      close: () => this.toggle("talks-open", false),
    });
    this.panel = new SettingsPanel(this.settings, () => this.info, () => this.recount(), () => this.toggle("settings-open", false));
    this.build();
  }

  async start(): Promise<void> {
    this.conversations = await this.store.conversations();
    for (const conversation of this.conversations) this.mend(conversation);
    await this.tidy();
    this.open(this.conversations.find((each) => each.id === read(CURRENT)) ?? this.conversations[0] ?? fresh(), false);
    if (!this.store.lasting) toast("This browser keeps nothing here: the chat lasts as long as the page.");
    await this.connect();
  }

  // ------------------------------------------------------------------ the server

  private async connect(): Promise<void> {
    try {
      this.info = await api.info();
    } catch (error) {
      if (error instanceof ApiError && error.code === "invalid_api_key") return this.askKey(() => this.connect());
      this.away();
      return;
    }
    this.banner.hidden = true;
    this.transcript.explains = this.info.engine.explains || (this.info.engine.explains_not ?? "This engine can't tell where it looked.");
    document.title = `${this.info.name} · Trifocal`;
    this.panel.draw();
    this.draw();
    this.recount();
  }

  private async askKey(then: () => Promise<void>): Promise<void> {
    const key = await keyDialog();
    if (key === null) {
      this.tell("A key is needed to go on.", "Enter the key", () => void this.askKey(then));
      return;
    }
    api.setKey(key);
    this.banner.hidden = true;
    await then();
  }

  /** The server is away: says so, and goes on as soon as it is back. */
  private away(then: () => void = () => void this.connect()): void {
    this.tell("The server is away. Nothing is lost; trying again…");
    const look = async (): Promise<void> => {
      if (!(await api.alive())) {
        setTimeout(() => void look(), 1500);
        return;
      }
      this.banner.hidden = true;
      announce("The server is back");
      then();
    };
    setTimeout(() => void look(), 1500);
  }

  private tell(words: string, label?: string, act?: () => void): void {
    this.banner.replaceChildren(h("span", {}, words), label && act ? h("button", { type: "button", onClick: act }, label) : "");
    this.banner.hidden = false;
  }

  // ------------------------------------------------------------------ asking and answering

  /** The round button: sends, or stops what is under way. From the keyboard it only sends. */
  private async press(byKey = false): Promise<void> {
    if (this.growing) {
      if (!byKey) this.growing.stop.abort();
      return;
    }
    if (this.composer.empty) {
      this.composer.focus();
      return;
    }
    const question: UserTurn = { role: "user", id: newId(), pieces: trimmed(this.composer.pieces), leftOut: [] };
    const turn: AssistantTurn = { role: "assistant", id: newId(), answers: [], shown: 0 };
    this.change(() => {
      if (this.editing) this.cutAt(this.editing.turn);
      this.current.turns.push(question, turn);
      if (!this.current.named && this.current.turns.length === 2) this.current.title = titleOf(question);
    });
    this.composer.pieces = this.editing?.draft ?? [];
    this.stopEditing(false);
    this.written();
    await this.run(turn, false);
  }

  /** Asks for an answer, or for more of one, and lets it grow. */
  private async run(turn: AssistantTurn, more: boolean): Promise<void> {
    const conversation = this.current;
    const before = conversation.turns.slice(0, conversation.turns.indexOf(turn));
    if (!more) {
      turn.answers = turn.answers.filter((answer) => answer.text || !answer.problem);
      turn.answers.push({ text: "", outcome: null, stopped: null, problem: null });
      turn.shown = turn.answers.length - 1;
    }
    const answer = answerOf(turn);
    Object.assign(answer, { stopped: null, problem: null });
    const stop = new AbortController();
    this.growing = { turn, stop };
    this.draw();
    this.toEnd();
    announce("Answering");
    let saved = performance.now();
    try {
      const sampling = { ...this.settings.sampling };
      if (sampling.temperature > 0 && sampling.seed === null) sampling.seed = Math.floor(Math.random() * 2 ** 31);
      answer.outcome = await api.chat(
        { ...(await this.asked(more ? [...before, turn] : before)), sampling },
        (piece) => {
          answer.text += piece;
          this.transcript.grow(turn);
          this.toEnd();
          if (performance.now() - saved > SAVE_EVERY) {
            saved = performance.now();
            void this.save(conversation);
          }
        },
        stop.signal,
      );
      announce(`Answer: ${answer.text}`);
    } catch (error) {
      this.failed(turn, answer, stop.signal.aborted, error);
    }
    this.growing = null;
    conversation.updated = Date.now();
    await this.save(conversation);
    this.draw();
    this.recount();
  }

  private failed(turn: AssistantTurn, answer: Answer, stopped: boolean, error: unknown): void {
    if (stopped) {
      answer.stopped = "You stopped it here.";
      return;
    }
    if (error instanceof ApiError && error.code === "invalid_api_key") {
      answer.problem = error.problem;
      void this.askKey(() => this.run(turn, false));
      return;
    }
    if (error instanceof ApiError && error.code === "unreachable") {
      if (answer.text) answer.stopped = "The connection ended here. “Go on” asks for the rest.";
      else answer.problem = error.problem;
      this.away(() => {
        void this.connect();
        if (!answer.text && !this.growing && this.current.turns.includes(turn)) void this.run(turn, false);
      });
      return;
    }
    answer.problem = error instanceof ApiError ? error.problem : { message: String(error), advice: "", retry: null };
  }

  private async again(turn: AssistantTurn): Promise<void> {
    if (!this.growing) await this.run(turn, false);
  }

  private async asked(turns: readonly Turn[], source = whole): Promise<{ messages: api.WireMessage[]; images: "all" | "last"; template: string | null }> {
    const { system, template, allImages } = this.settings;
    const place = this.info?.places?.[template ?? this.info.template] ?? "first";
    const messages = await messagesOf(turns, system, place, this.store, source);
    return { messages, images: allImages ? "all" : "last", template };
  }

  private async look(turn: AssistantTurn): Promise<{ look: Awaited<ReturnType<typeof api.explain>>; pictures: string[] }> {
    const turns = this.current.turns.slice(0, this.current.turns.indexOf(turn) + 1);
    const look = await api.explain(await this.asked(turns));
    const sent = turns.flatMap((each) => (each.role === "user" ? picturesOf(each.pieces).filter((id) => !each.leftOut.includes(id)) : []));
    // the server tells of those that it kept, and it leaves out the oldest first
    return { look, pictures: look.images.length ? sent.slice(-look.images.length) : [] };
  }

  // ------------------------------------------------------------------ changing the conversation

  private change(act: () => void): void {
    act();
    this.current.updated = Date.now();
    if (!this.conversations.includes(this.current)) this.conversations.unshift(this.current);
    void this.save(this.current);
    this.draw();
    this.recount();
  }

  private edit(turn: UserTurn): void {
    this.editing ??= { turn: turn.id, draft: this.composer.pieces };
    this.editing.turn = turn.id;
    this.composer.pieces = turn.pieces;
    this.composer.focus();
    this.drawNotices();
    this.recount();
  }

  private editLast(): void {
    const last = this.current.turns.findLast((turn) => turn.role === "user");
    if (last?.role === "user" && !this.growing) this.edit(last);
  }

  private stopEditing(restore = true): void {
    if (this.editing && restore) this.composer.pieces = this.editing.draft;
    this.editing = null;
    this.drawNotices();
    if (restore) this.written();
  }

  private cutAt(id: string): void {
    const at = this.current.turns.findIndex((turn) => turn.id === id);
    if (at >= 0) this.undoable(this.current.turns.splice(at), at, "The question and what followed were replaced.");
  }

  private remove(turn: Turn): void {
    const at = this.current.turns.indexOf(turn);
    const follows = this.current.turns[at + 1];
    const count = turn.role === "user" ? (follows?.role === "assistant" ? 2 : 1) : this.current.turns.length - at;
    this.change(() => this.undoable(this.current.turns.splice(at, count), at, "Deleted."));
  }

  private undoable(gone: Turn[], at: number, words: string): void {
    const conversation = this.current;
    const kept = words.startsWith("The question") ? null : gone;
    const before = [...conversation.turns, ...(kept ? [] : gone)];
    toast(words, {
      label: "Undo",
      act: () => {
        if (conversation !== this.current) this.open(conversation);
        this.change(() => {
          if (kept) conversation.turns.splice(at, 0, ...kept);
          else conversation.turns = before;
        });
      },
    });
  }

  private keep(turn: UserTurn, picture: string, keep: boolean): void {
    this.change(() => {
      turn.leftOut = turn.leftOut.filter((id) => id !== picture);
      if (!keep) turn.leftOut.push(picture);
    });
    announce(keep ? "The picture is kept" : "The picture is left out");
  }

  private written(): void {
    if (!this.editing) this.current.draft.pieces = this.composer.pieces;
    this.saveDraft();
    this.recount();
    this.drawSend();
  }

  private readonly saveDraft = later(250, () => {
    const conversation = this.current;
    const worth =
      !this.forgotten.has(conversation.id) && (conversation.turns.length > 0 || conversation.draft.pieces.length > 0);
    if (worth && !this.conversations.includes(conversation)) {
      this.conversations.unshift(conversation);
      this.drawSidebar();
    }
    if (worth) void this.save(conversation);
  });

  private async save(conversation: Conversation): Promise<void> {
    if (this.forgotten.has(conversation.id)) return;
    write(CURRENT, this.current.id);
    try {
      await this.store.save(conversation);
    } catch {
      toast("The browser has no room to keep this chat. Export it, or delete older ones.");
    }
  }

  /** Answers that were growing when the page was closed. */
  private mend(conversation: Conversation): void {
    for (const turn of conversation.turns) {
      if (turn.role !== "assistant") continue;
      for (const answer of turn.answers) {
        if (!answer.outcome && !answer.stopped && !answer.problem) answer.stopped = "The page was closed here. “Go on” asks for the rest.";
      }
    }
  }

  // ------------------------------------------------------------------ pictures

  private async add(files: Iterable<File>): Promise<void> {
    const limits = this.info?.limits;
    if (!limits) {
      toast("The server is away; add the picture again when it is back.");
      return;
    }
    for (const file of files) {
      const taken = await take(file, limits);
      if ("picture" in taken) {
        await this.store.keep(taken.picture).catch(() => toast("The browser has no room to keep this picture; it lasts as long as the page."));
        this.composer.insert(taken.picture);
        continue;
      }
      const notice = h("div", { class: "problem", role: "alert" }, h("strong", {}, taken.problem.message), " ", taken.problem.advice,
        h("div", { class: "actions" },
          taken.shrinkable && h("button", { type: "button", onClick: () => { notice.remove(); void shrunk(taken.file).then((small) => this.add([small])); } }, "Make it smaller"),
          h("button", { type: "button", onClick: () => notice.remove() }, "Dismiss")));
      this.notices.append(notice);
    }
    this.composer.field.focus();
  }

  private show(id: string): void {
    const picture = this.store.pictures.get(id);
    if (picture) previewDialog(picture, this.store.url(id), whole(picture).then(api.preview));
  }

  private async sample(sample: Sample): Promise<void> {
    await this.add([await fetched(sample.picture, `${sample.title}.png`)]);
    const pieces = this.composer.pieces.filter((piece) => "picture" in piece);
    this.composer.pieces = [...pieces, { text: " " + sample.question }];
    this.written();
    this.composer.focus();
  }

  // ------------------------------------------------------------------ conversations

  private open(conversation: Conversation, focus = true): void {
    this.growing?.stop.abort();
    this.editing = null;
    this.current = conversation;
    write(CURRENT, conversation.id);
    this.composer.pieces = conversation.draft.pieces.filter((piece) => "text" in piece || this.store.pictures.has(piece.picture));
    this.notices.replaceChildren();
    this.toggle("talks-open", false);
    this.draw();
    this.toEnd(true);
    this.recount();
    if (focus) this.composer.focus();
  }

  private rename(id: string, title: string): void {
    const conversation = this.conversations.find((each) => each.id === id);
    if (!conversation) return;
    Object.assign(conversation, { title, named: true });
    void this.save(conversation);
    this.draw();
  }

  private async forget(id: string): Promise<void> {
    const gone = this.conversations.find((each) => each.id === id);
    if (!gone) return;
    this.conversations = this.conversations.filter((each) => each !== gone);
    this.forgotten.add(id);
    await this.store.remove(id);
    if (gone === this.current) this.open(this.conversations[0] ?? fresh());
    else this.drawSidebar();
    toast("The chat is deleted.", {
      label: "Undo",
      act: () => {
        this.forgotten.delete(id);
        this.conversations.unshift(gone);
        void this.store.save(gone);
        this.open(gone);
      },
    });
  }

  private async export(): Promise<void> {
    const blob = await exported(this.conversations, this.store);
    const link = h("a", { href: URL.createObjectURL(blob), download: `trifocal-chats-${new Date().toISOString().slice(0, 10)}.json` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  private async import(file: File): Promise<void> {
    try {
      const found = await imported(file, this.store);
      for (const conversation of found) {
        this.conversations.unshift(conversation);
        await this.store.save(conversation);
      }
      if (found[0]) this.open(found[0]);
      toast(`${found.length} ${found.length === 1 ? "chat" : "chats"} imported.`);
    } catch {
      toast(`${file.name} holds no chats of Trifocal; choose a file that “Export all” wrote.`);
    }
  }

  private async tidy(): Promise<void> {
    const mentioned = this.conversations.flatMap((each) => [
      ...picturesOf(each.draft.pieces),
      ...each.turns.flatMap((turn) => (turn.role === "user" ? picturesOf(turn.pieces) : [])),
    ]);
    await this.store.tidy(new Set(mentioned));
  }

  // ------------------------------------------------------------------ the meter

  private readonly recount = later(250, () => void this.count());

  private async count(): Promise<void> {
    this.counting?.abort();
    if (!this.info || this.growing) return;
    const draft = this.composer.empty ? [] : trimmed(this.composer.pieces);
    const edited = this.editing ? this.current.turns.findIndex((turn) => turn.id === this.editing?.turn) : -1;
    const turns: Turn[] = edited >= 0 ? this.current.turns.slice(0, edited) : [...this.current.turns];
    if (draft.length) turns.push({ role: "user", id: "", pieces: draft, leftOut: [] });
    if (!turns.length) return this.meter.show(null, []);
    const names = turns.flatMap((turn) => turn.role === "user"
      ? picturesOf(turn.pieces).filter((id) => !turn.leftOut.includes(id)).map((id) => this.store.pictures.get(id)?.name ?? "picture")
      : []);
    this.counting = new AbortController();
    const signal = this.counting.signal;
    try {
      const asked = await this.asked(turns, blank);
      this.meter.show(await api.count({ ...asked, max_tokens: this.settings.sampling.max_tokens }, signal), names);
    } catch (error) {
      if (!signal.aborted && error instanceof ApiError && error.status === 400) this.meter.show(null, [], error.problem.message);
    }
  }

  // ------------------------------------------------------------------ drawing

  private build(): void {
    const files = h("input", {
      type: "file",
      accept: "image/*",
      multiple: true,
      hidden: true,
      id: "files",
      onChange: () => {
        void this.add([...(files.files ?? [])]).then(() => (files.value = ""));
      },
    });
    const box = h("div", { class: "composer" },
      this.composer.field,
      h("div", { class: "composer-tools" },
        iconButton("picture", "Add pictures", () => files.click()),
        iconButton("camera", "Take a picture with the camera", () => void cameraDialog().then((shot) => shot && this.add([shot]))),
        h("span", { class: "grow" }),
        this.send));
    const header = h("header", { class: "top" },
      iconButton("menu", "Chats", () => this.toggle("talks-open"), { class: "only-small", "aria-controls": "talks" }),
      this.title,
      themeButton(),
      iconButton("help", "Keys", helpDialog),
      iconButton("tune", "Settings", () => this.toggle("settings-open"), { "aria-controls": "settings", id: "settings-button" }));
    this.root.append(
      h("a", { class: "skip", href: "#main" }, "To the conversation"),
      this.sidebar.element,
      h("div", { class: "stage" }, header, this.banner, this.scroll,
        h("footer", { class: "foot" }, h("div", { class: "foot-box" }, this.notices, box, this.meter.element, files))),
      this.panel.element,
      h("div", { class: "shade", onClick: () => { this.toggle("talks-open", false); this.toggle("settings-open", false); } }),
    );
    document.body.append(this.root);
    this.root.classList.toggle("settings-open", read("trifocal.panel") === "open" && matchMedia("(min-width: 1100px)").matches);
    this.listen();
    this.panel.draw();
  }

  private listen(): void {
    let depth = 0;
    const files = (event: DragEvent): boolean => [...(event.dataTransfer?.types ?? [])].includes("Files");
    addEventListener("dragenter", (event) => {
      if (files(event)) this.root.classList.toggle("dropping", ++depth > 0);
    });
    addEventListener("dragleave", (event) => {
      if (files(event)) this.root.classList.toggle("dropping", --depth > 0);
    });
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => {
      event.preventDefault();
      depth = 0;
      this.root.classList.remove("dropping");
      const dropped = [...(event.dataTransfer?.files ?? [])];
      if (dropped.length) void this.add(dropped);
    });
    addEventListener("keydown", (event) => this.key(event));
    addEventListener("pagehide", () => void this.store.save(this.current).catch(() => undefined));
  }

  private key(event: KeyboardEvent): void {
    const command = event.ctrlKey || event.metaKey;
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
      if (this.growing) this.growing.stop.abort();
      else if (this.editing) this.stopEditing();
      else if (this.root.classList.contains("settings-open")) this.toggle("settings-open", false);
      else this.toggle("talks-open", false);
    } else if (command && event.key === "/") {
      event.preventDefault();
      helpDialog();
    } else if (command && event.key === ",") {
      event.preventDefault();
      this.toggle("settings-open");
    } else if (command && event.shiftKey && event.key.toLowerCase() === "o") {
      event.preventDefault();
      this.open(fresh());
    }
  }

  private toggle(name: "talks-open" | "settings-open", on?: boolean): void {
    const open = this.root.classList.toggle(name, on);
    if (name === "settings-open") {
      write("trifocal.panel", open ? "open" : null);
      document.getElementById("settings-button")?.setAttribute("aria-expanded", String(open));
    }
  }

  private draw(): void {
    const { turns } = this.current;
    this.title.textContent = this.current.title || "New chat";
    this.transcript.draw(turns, this.growing?.turn.id ?? null);
    const wanted = turns.length ? this.transcript.element : welcome(this.info, (sample) => void this.sample(sample));
    if (this.scroll.firstChild !== wanted) this.scroll.replaceChildren(wanted);
    this.root.classList.toggle("busy", this.growing !== null);
    this.drawSend();
    this.drawNotices();
    this.drawSidebar();
  }

  private drawSidebar(): void {
    const sorted = [...this.conversations].sort((one, other) => other.updated - one.updated);
    this.sidebar.draw(sorted, this.current.id);
  }

  private drawSend(): void {
    const busy = this.growing !== null;
    this.send.replaceChildren(icon(busy ? "stop" : "send"));
    this.send.setAttribute("aria-label", busy ? "Stop" : "Send");
    this.send.title = busy ? "Stop (Esc)" : "Send (Enter)";
    this.send.disabled = !busy && this.composer.empty;
  }

  private drawNotices(): void {
    this.notices.querySelector(".editing")?.remove();
    if (!this.editing) return;
    this.notices.append(h("div", { class: "editing" }, "Sending replaces the question and what follows it.",
      h("button", { type: "button", class: "text-button", onClick: () => this.stopEditing() }, "Leave it as it was")));
  }

  /** Scrolls to the end, unless somebody reads further up. */
  private toEnd(always = false): void {
    const { scrollHeight, scrollTop, clientHeight } = this.scroll;
    if (always || scrollHeight - scrollTop - clientHeight < 240) {
      requestAnimationFrame(() => (this.scroll.scrollTop = this.scroll.scrollHeight));
    }
  }
}

function fresh(): Conversation {
  return { id: newId(), title: "", named: false, updated: Date.now(), turns: [], draft: { pieces: [] } };
}

function titleOf(turn: UserTurn): string {
  const text = textOf(turn.pieces).trim().replace(/\s+/g, " ");
  if (!text) return "A picture";
  return text.length > 60 ? `${text.slice(0, 58).trimEnd()}…` : text;
}

/** The pieces without white space at the two ends. */
function trimmed(pieces: Piece[]): Piece[] {
  const found = pieces.map((piece) => ({ ...piece }));
  const first = found[0];
  const last = found.at(-1);
  if (first && "text" in first) first.text = first.text.trimStart();
  if (last && "text" in last) last.text = last.text.trimEnd();
  return found.filter((piece) => "picture" in piece || piece.text);
}

applyTheme();
document.body.append(h("div", { class: "loading" }, logo()));
void Store.open().then(async (store) => {
  document.querySelector(".loading")?.remove();
  await new App(store).start();
});
