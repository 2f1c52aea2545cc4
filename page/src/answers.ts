// An answer as it is read: its text as it grows, what went wrong, what it did not see, and what can be done with it.

import { copyButton } from "./copying";
import { costs } from "./costs";
import { h, icon, iconButton, moment } from "./dom";
import { Written } from "./markdown";
import { lookPanel } from "./overlay";
import { keepingFocus, opens } from "./popover";
import type { Store } from "./store";
import type { Answer, AssistantTurn, Look } from "./types";
import { answerOf } from "./types";

export interface AnswerActions {
  again: (turn: AssistantTurn) => void;
  goOn: (turn: AssistantTurn) => void;
  choose: (turn: AssistantTurn, at: number) => void;
  change: (turn: AssistantTurn, text: string) => void;
  branch: (turn: AssistantTurn) => void;
  removeAnswer: (turn: AssistantTurn) => void;
  dontWait: (turn: AssistantTurn) => void;
  look: (turn: AssistantTurn) => Promise<{ look: Look; pictures: string[] }>;
}

export interface AnswerState {
  busy: boolean;
  outside: boolean;
  last: boolean;
  /** Another tab writes it. */
  elsewhere: boolean;
  /** True, or why this server can't tell where it looked. */
  explains: string | true;
}

export class AnswerView {
  readonly element: HTMLElement;
  private readonly written = new Written();
  private readonly notes = h("div", { class: "notes" });
  private readonly tools = h("div", { class: "turn-tools" });
  private panel: HTMLElement | null = null;
  private drawn = "";
  private of = "";

  constructor(
    private turn: AssistantTurn,
    private readonly store: Store,
    private readonly on: AnswerActions,
  ) {
    this.element = h("article", { class: "turn assistant", "aria-label": "Answer", "data-turn": turn.id }, this.written.element, this.notes, this.tools);
  }

  /** Shows the turn as it is now; what did not change is left alone, with the focus and the panels in it. */
  update(turn: AssistantTurn, state: AnswerState): void {
    this.turn = turn;
    const answer = answerOf(turn);
    const growing = answer.writer !== null;
    this.element.className = `turn assistant ${growing ? "growing" : ""} ${state.outside ? "outside" : ""}`;
    this.element.setAttribute("aria-busy", String(growing));
    if (!(growing && this.of === answer.id && !answer.text)) this.written.set(answer.text, !growing);
    const text = growing ? "" : answer.text;
    if (this.of !== answer.id || (this.panel && this.panel.dataset.text !== text)) this.closeLook();
    this.of = answer.id;
    const looks = JSON.stringify([{ ...answer, text: growing ? Boolean(answer.text) : text }, turn.answers.length, turn.shown, state]);
    if (looks === this.drawn) return;
    this.drawn = looks;
    keepingFocus(() => {
      this.notes.replaceChildren(...this.said(answer, state));
      this.tools.replaceChildren(...(growing ? [] : this.offered(turn, answer, state)));
    });
  }

  /** Says what the answer waits for, beside the lenses that turn. */
  wait(words: string): void {
    const lenses = this.element.querySelector(".waiting");
    if (lenses && !this.element.querySelector(".waits-for")) lenses.after(h("span", { class: "waits-for muted", role: "status" }, words));
  }

  /** Shows the text of an answer that grows. */
  grow(text: string): void {
    for (const wait of this.element.querySelectorAll(".waiting, .waits-for")) wait.remove();
    this.written.set(text, false);
  }

  private said(answer: Answer, state: AnswerState): HTMLElement[] {
    const notes: HTMLElement[] = [];
    if (answer.writer && !answer.text) notes.push(h("span", { class: "waiting", role: "img", "aria-label": "The model is looking" }, h("i", {}), h("i", {}), h("i", {})));
    if (answer.writer && state.elsewhere) notes.push(h("p", { class: "stopped" }, "Another tab is writing this answer."));
    if (answer.outcome?.leftOut.length) notes.push(h("p", { class: "without" }, `Answered without ${answer.outcome.leftOut.join(" and ")}.`));
    if (answer.stopped) notes.push(h("p", { class: "stopped" }, answer.stopped));
    if (answer.waiting) {
      notes.push(h("div", { class: "problem", role: "status" }, "The server is away. This is asked again as soon as it is back. ",
        h("div", { class: "actions" }, h("button", { type: "button", onClick: () => this.on.dontWait(this.turn) }, "Don't ask again"))));
    }
    if (answer.problem) {
      notes.push(h("div", { class: "problem", role: "alert" }, h("strong", {}, answer.problem.message), " ", answer.problem.advice,
        h("div", { class: "actions" }, h("button", { type: "button", disabled: state.busy, onClick: () => this.on.again(this.turn) }, "Try again"))));
    }
    return notes;
  }

  private offered(turn: AssistantTurn, answer: Answer, { busy, last, explains }: AnswerState): HTMLElement[] {
    const offered: HTMLElement[] = [];
    if (turn.answers.length > 1) {
      offered.push(h("span", { class: "variants" },
        iconButton("left", "The answer before", () => this.on.choose(turn, turn.shown - 1), { disabled: turn.shown === 0 }),
        h("span", {}, `${turn.shown + 1} / ${turn.answers.length}`),
        iconButton("right", "The next answer", () => this.on.choose(turn, turn.shown + 1), { disabled: turn.shown === turn.answers.length - 1 })));
    }
    if (last) offered.push(iconButton("again", "Answer anew", () => this.on.again(turn), { disabled: busy }));
    if (last && answer.text) offered.push(iconButton("forward", "Go on with this answer", () => this.on.goOn(turn), { disabled: busy }));
    if (answer.text) {
      offered.push(copyButton("Copy the answer", () => answerOf(this.turn).text));
      offered.push(h("button", { type: "button", class: "text-button look-button", disabled: busy, "aria-expanded": "false", onClick: () => void this.look(explains) }, icon("look"), "Where did it look?"));
    }
    offered.push(opens(h("button", { type: "button", class: "icon-button", "aria-label": "More", title: "More", disabled: busy }, icon("more")), "What else can be done", () => this.more()));
    if (answer.outcome && !answer.edited) offered.push(costs(answer.outcome));
    if (answer.edited) offered.push(h("span", { class: "moment" }, "edited"));
    offered.push(moment(answer.at));
    return offered;
  }

  private more(): HTMLElement[] {
    const item = (name: Parameters<typeof icon>[0], words: string, act: () => void): HTMLElement =>
      h("button", { type: "button", class: "menu-item", "data-closes": "", onClick: act }, icon(name), words);
    return [
      item("edit", "Edit the answer", () => this.edit()),
      item("branch", "Go on from here in a new chat", () => this.on.branch(this.turn)),
      item("bin", "Delete this answer and what follows", () => this.on.removeAnswer(this.turn)),
    ];
  }

  private edit(): void {
    const text = answerOf(this.turn).text;
    const field = h("textarea", { class: "answer-edit", value: text, "aria-label": "The answer", rows: Math.min(20, text.split("\n").length + 3) });
    const end = (): void => {
      form.remove();
      this.written.element.hidden = false;
      this.tools.hidden = false;
    };
    const form = h("div", { class: "answer-form", onKeydown: (event: KeyboardEvent) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      end();
    } }, field,
      h("div", { class: "actions" },
        h("button", { type: "button", class: "primary", onClick: () => { end(); if (field.value !== text) this.on.change(this.turn, field.value); } }, "Keep"),
        h("button", { type: "button", onClick: end }, "Leave it as it was")));
    this.written.element.hidden = true;
    this.tools.hidden = true;
    this.element.prepend(form);
    field.focus();
  }

  private closeLook(): void {
    this.panel?.remove();
    this.panel = null;
    this.element.querySelector(".look-button")?.setAttribute("aria-expanded", "false");
  }

  private async look(explains: string | true): Promise<void> {
    if (this.panel) return this.closeLook();
    const panel = h("div", { class: "look-place", "data-text": answerOf(this.turn).text });
    this.panel = panel;
    this.element.append(panel);
    this.element.querySelector(".look-button")?.setAttribute("aria-expanded", "true");
    if (explains !== true) return panel.append(h("p", { class: "look-told muted" }, explains));
    panel.append(h("p", { class: "look-told muted", role: "status" }, "Looking again…"));
    try {
      const { look, pictures } = await this.on.look(this.turn);
      const named = pictures.map((id) => ({ url: this.store.url(id), name: this.store.picture(id)?.name ?? "picture" }));
      panel.replaceChildren(look.images.length
        ? lookPanel(look, answerOf(this.turn).text, named)
        : h("p", { class: "look-told muted" }, "The model was shown no picture for this answer."));
      requestAnimationFrame(() => panel.scrollIntoView({ block: "nearest", behavior: "smooth" }));
    } catch (error) {
      panel.replaceChildren(h("p", { class: "look-told problem" }, error instanceof Error ? error.message : String(error)));
    }
  }
}
