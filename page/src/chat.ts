// The chat that this tab shows: the conversation as the store has it, and what can be changed in it.

import { chatOfAddress, goTo } from "./address";
import { currentChat, keepCurrentChat } from "./choices";
import type { Store } from "./store";
import { toast } from "./toast";
import type { AssistantTurn, Conversation, Piece, Settings, Turn, UserTurn } from "./types";
import { answerOf, freshAnswer, freshConversation, newId, picturesOf, titleOf } from "./types";

export class OpenChat {
  conversation: Conversation = freshConversation();
  /** Whether the store has it: then it is never made anew, since another tab may have deleted it. */
  private kept = false;

  constructor(
    private readonly store: Store,
    private readonly tab: string,
    private readonly changed: () => void,
    private readonly opened: (conversation: Conversation) => void,
  ) {}

  get id(): string {
    return this.conversation.id;
  }

  get isKept(): boolean {
    return this.kept;
  }

  /** Opens the chat that this tab showed last, else the newest, else a new one. */
  async start(): Promise<void> {
    const last = currentChat();
    const found = last ? await this.store.load(last) : null;
    const newest = found ? null : (await this.store.list())[0];
    this.show(found ?? (newest ? await this.store.load(newest.id) : null));
  }

  async open(id: string): Promise<void> {
    const found = await this.store.load(id);
    this.show(found, !found);
  }

  /** Opens the chat of this place in the history, which stays as it is; unless the place was left again while the chat was read. */
  async goBack(id: string): Promise<void> {
    const found = await this.store.load(id);
    if (chatOfAddress() === id) this.show(found, !found);
  }

  /** Shows a conversation; none is a new one. `instead` says that there is no way back to what was shown before. */
  show(conversation: Conversation | null, instead = false): void {
    const empty = instead || !this.kept;
    this.kept = conversation !== null;
    this.conversation = conversation ?? freshConversation();
    goTo(this.id, empty);
    keepCurrentChat(this.id);
    this.opened(this.conversation);
  }

  /** Takes what another tab or an answer changed. */
  take(conversation: Conversation | null): void {
    if (conversation?.id !== this.id) return;
    this.conversation = conversation;
    this.kept = true;
    this.changed();
  }

  /** Changes the conversation: at once on the screen, then in the store, whose word counts. `act` may run more than once. */
  async edit(act: (conversation: Conversation) => void): Promise<Conversation | null> {
    const before = this.conversation;
    const shown = structuredClone(before);
    act(shown);
    this.conversation = shown;
    this.changed();
    const edited = await this.store.edit(before.id, act, this.kept ? null : before);
    this.take(edited);
    return edited;
  }

  /** Adds a question and its answer, which this tab will write; `instead` is the question that they replace, with what follows it. */
  async say(pieces: Piece[], instead: string | null, model: string | null): Promise<AssistantTurn | null> {
    const question: UserTurn = { role: "user", id: newId(), at: Date.now(), pieces, leftOut: [] };
    const answer: AssistantTurn = { role: "assistant", id: newId(), answers: [freshAnswer(this.tab)], shown: 0 };
    let gone: Turn[] = [];
    const edited = await this.edit((found) => {
      const at = instead === null ? -1 : found.turns.findIndex((turn) => turn.id === instead);
      gone = at >= 0 ? found.turns.splice(at) : [];
      const old = gone[0];
      if (old?.role === "user") question.leftOut = old.leftOut.filter((id) => picturesOf(pieces).includes(id));
      found.turns.push(question, answer);
      found.updated = Date.now();
      found.model ??= model; // from its first question on
      if (!found.named && found.turns.length === 2) found.title = titleOf(question);
    });
    if (gone.length) {
      this.undo("The question and what followed were replaced.", (found) => {
        const at = found.turns.findIndex((turn) => turn.id === question.id);
        if (at >= 0) found.turns.splice(at);
        found.turns.push(...gone);
      });
    }
    return edited && answer;
  }

  /** Places an answer under a question that has none. */
  async answerTo(question: UserTurn): Promise<AssistantTurn> {
    const answer: AssistantTurn = { role: "assistant", id: newId(), answers: [freshAnswer(this.tab)], shown: 0 };
    await this.edit((found) => {
      const at = found.turns.findIndex((turn) => turn.id === question.id);
      if (at >= 0 && found.turns[at + 1]?.role !== "assistant") found.turns.splice(at + 1, 0, answer);
    });
    return answer;
  }

  async removeQuestion(turn: UserTurn): Promise<void> {
    await this.remove(turn.id, (follows) => (follows?.role === "assistant" ? 2 : 1));
  }

  async removeAnswer(turn: AssistantTurn): Promise<void> {
    await this.remove(turn.id, () => Infinity);
  }

  async keepPicture(turn: UserTurn, picture: string, keep: boolean): Promise<void> {
    await this.edit((found) => {
      const question = found.turns.find((each) => each.id === turn.id);
      if (question?.role !== "user") return;
      question.leftOut = question.leftOut.filter((id) => id !== picture);
      if (!keep) question.leftOut.push(picture);
    });
  }

  async change(turn: AssistantTurn, act: (turn: AssistantTurn) => void): Promise<void> {
    await this.edit((found) => {
      const answer = found.turns.find((each) => each.id === turn.id);
      if (answer?.role === "assistant") act(answer);
    });
  }

  /** Keeps somebody's own words as one more answer. */
  async rewrite(turn: AssistantTurn, text: string): Promise<void> {
    const answer = { ...freshAnswer(null), text, edited: true };
    await this.change(turn, (found) => {
      found.answers.push(answer);
      found.shown = found.answers.length - 1;
    });
  }

  async setSettings(settings: Settings | null): Promise<void> {
    if (this.kept) await this.edit((found) => (found.settings = settings));
    else this.conversation.settings = settings;
  }

  async setModel(model: string): Promise<void> {
    if (this.kept) await this.edit((found) => (found.model = model));
    else this.conversation.model = model;
  }

  /** A new chat with all that stands up to a turn. */
  async branch(turn: AssistantTurn): Promise<void> {
    const { turns, title } = this.conversation;
    const upTo = turns.slice(0, turns.findIndex((each) => each.id === turn.id) + 1);
    const copies = structuredClone(upTo).map((each): Turn => (each.role === "user" ? each : { ...each, answers: [answerOf(each)], shown: 0 }));
    const made = { ...freshConversation(this.conversation.settings), model: this.conversation.model, title: `${title} (2)`, named: true, turns: copies };
    await this.store.restore(made);
    this.show(made);
    toast("A new chat goes on from here; the old one stays as it was.");
  }

  private async remove(id: string, count: (follows: Turn | undefined) => number): Promise<void> {
    let gone: Turn[] = [];
    let before: string | undefined;
    await this.edit((found) => {
      const at = found.turns.findIndex((turn) => turn.id === id);
      if (at < 0) return;
      before = found.turns[at - 1]?.id;
      gone = found.turns.splice(at, count(found.turns[at + 1]));
    });
    if (!gone.length) return;
    this.undo("Deleted.", (found) => found.turns.splice(before ? found.turns.findIndex((turn) => turn.id === before) + 1 : 0, 0, ...gone));
  }

  private undo(words: string, act: (conversation: Conversation) => void): void {
    const { id } = this;
    toast(words, {
      label: "Undo",
      act: () => void (id === this.id ? this.edit(act) : this.store.edit(id, act).then((edited) => edited && this.show(edited))),
    });
  }
}
