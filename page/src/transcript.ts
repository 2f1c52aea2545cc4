// The conversation as it is read: a view for each turn, kept while the turn stays, and a line where the model's memory ends.

import type { AnswerActions } from "./answers";
import { AnswerView } from "./answers";
import { arrange, h } from "./dom";
import { keepingFocus } from "./popover";
import type { QuestionActions, QuestionState } from "./questions";
import { picturesKnown, question } from "./questions";
import type { Store } from "./store";
import type { AssistantTurn, Turn, UserTurn } from "./types";
import { picturesOf } from "./types";

export type TranscriptActions = QuestionActions & AnswerActions;

/** What the server leaves out of the next question. */
export interface LeftOut {
  turns: ReadonlySet<string>;
  pictures: readonly string[];
}

interface QuestionView {
  element: HTMLElement;
  drawn: string;
}

export class Transcript {
  readonly element = h("div", { class: "turns" });
  explains: string | true = true;
  private readonly questions = new Map<string, QuestionView>();
  private readonly answers = new Map<string, AnswerView>();
  private readonly line = h("p", { class: "memory-ends", role: "note" }, "The context is full: the model no longer sees what stands above this line.");

  constructor(
    private readonly store: Store,
    private readonly own: string,
    private readonly on: TranscriptActions,
  ) {}

  draw(turns: readonly Turn[], leftOut: LeftOut): void {
    const busy = turns.some((turn) => turn.role === "assistant" && turn.answers.some((answer) => answer.writer !== null));
    const elements = turns.map((turn, at) => {
      const outside = leftOut.turns.has(turn.id);
      const follows = turns[at + 1];
      return turn.role === "user"
        ? this.question(turn, { busy, outside, dropped: leftOut.pictures, unanswered: follows?.role !== "assistant" })
        : this.answer(turn, busy, outside, at === turns.length - 1);
    });
    const first = turns.findIndex((turn) => !leftOut.turns.has(turn.id));
    if (first > 0) elements.splice(first, 0, this.line);
    arrange(this.element, elements);
    this.forget(new Set(turns.map((turn) => turn.id)));
  }

  /** Says what an answer waits for. */
  wait(turn: string, words: string): void {
    this.answers.get(turn)?.wait(words);
  }

  /** Shows the text of an answer that grows. */
  grow(turn: string, text: string): void {
    this.answers.get(turn)?.grow(text);
  }

  private question(turn: UserTurn, state: QuestionState): HTMLElement {
    const drawn = JSON.stringify([turn, { ...state, dropped: state.dropped.filter((id) => picturesOf(turn.pieces).includes(id)) }, picturesKnown(turn, this.store)]);
    const known = this.questions.get(turn.id);
    if (known?.drawn === drawn) return known.element;
    const element = question(turn, state, this.store, this.on);
    if (known?.element.isConnected) keepingFocus(() => known.element.replaceWith(element));
    this.questions.set(turn.id, { element, drawn });
    return element;
  }

  private answer(turn: AssistantTurn, busy: boolean, outside: boolean, last: boolean): HTMLElement {
    const view = this.answers.get(turn.id) ?? new AnswerView(turn, this.store, this.on);
    this.answers.set(turn.id, view);
    const elsewhere = turn.answers.some((answer) => answer.writer !== null && answer.writer !== this.own);
    view.update(turn, { busy, outside, last, elsewhere, explains: this.explains });
    return view.element;
  }

  private forget(kept: Set<string>): void {
    for (const views of [this.questions, this.answers]) for (const id of [...views.keys()]) if (!kept.has(id)) views.delete(id);
  }
}
