// The conversation as it is read: questions with their pictures, answers as they grow, and what each one cost.

import { lookPanel } from "./overlay";
import { h, icon, iconButton, plural, seconds } from "./dom";
import { render } from "./markdown";
import type { Store } from "./store";
import type { Answer, AssistantTurn, Look, Outcome, Turn, UserTurn } from "./types";
import { answerOf, picturesOf } from "./types";
import { isPlaced } from "./wire";

export interface TranscriptActions {
  edit: (turn: UserTurn) => void;
  remove: (turn: Turn) => void;
  again: (turn: AssistantTurn) => void;
  goOn: (turn: AssistantTurn) => void;
  choose: (turn: AssistantTurn, at: number) => void;
  keep: (turn: UserTurn, picture: string, keep: boolean) => void;
  show: (picture: string) => void;
  look: (turn: AssistantTurn) => Promise<{ look: Look; pictures: string[] }>;
}

export class Transcript {
  readonly element = h("div", { class: "turns" });
  explains: string | true = true;
  private readonly shown = new Map<string, HTMLElement>();
  private busy: string | null = null;

  constructor(
    private readonly store: Store,
    private readonly on: TranscriptActions,
  ) {}

  /** Draws all turns anew. `busy` is the answer that grows now. */
  draw(turns: readonly Turn[], busy: string | null): void {
    this.busy = busy;
    this.shown.clear();
    const last = turns.at(-1);
    this.element.replaceChildren(
      ...turns.map((turn) => {
        const element = turn.role === "user" ? this.question(turn) : this.answer(turn, turn === last);
        this.shown.set(turn.id, element);
        return element;
      }),
    );
  }

  /** Draws the text of an answer that grows. */
  grow(turn: AssistantTurn): void {
    const text = this.shown.get(turn.id)?.querySelector(".text");
    text?.replaceChildren(render(answerOf(turn).text));
  }

  private question(turn: UserTurn): HTMLElement {
    const body = h("div", { class: isPlaced(turn.pieces) ? "bubble placed" : "bubble" });
    for (const piece of turn.pieces) {
      if ("picture" in piece) body.append(this.picture(turn, piece.picture));
      else if (piece.text.trim()) body.append(h("span", { class: "said" }, piece.text));
    }
    return h("article", { class: "turn user", "aria-label": "Your question", "data-turn": turn.id }, body,
      h("div", { class: "turn-tools" },
        iconButton("edit", "Edit and ask again", () => this.on.edit(turn), { disabled: this.busy !== null }),
        iconButton("copy", "Copy the text", () => copy(turn.pieces.map((p) => ("text" in p ? p.text : "")).join(""))),
        iconButton("bin", "Delete the question and its answer", () => this.on.remove(turn), { disabled: this.busy !== null })));
  }

  private picture(turn: UserTurn, id: string): HTMLElement {
    const picture = this.store.pictures.get(id);
    const out = turn.leftOut.includes(id);
    const name = picture?.name ?? "picture";
    const eye = h("button", {
      type: "button",
      class: "keep",
      "aria-pressed": String(!out),
      "aria-label": out ? `Show ${name} to the model again` : `Leave ${name} out`,
      title: out ? "Left out: the model is not shown it. Press to keep it." : "Kept: the model is shown it. Press to leave it out.",
      onClick: () => this.on.keep(turn, id, out),
    }, icon(out ? "eyeOff" : "eye"));
    return h("figure", { class: `sent ${out ? "out" : ""}`, "data-picture": id },
      h("button", { type: "button", class: "sent-open", "aria-label": `What the model sees of ${name}`, onClick: () => this.on.show(id) },
        h("img", { src: this.store.url(id), alt: name })),
      eye,
      out && h("figcaption", {}, "left out"));
  }

  private answer(turn: AssistantTurn, last: boolean): HTMLElement {
    const answer = answerOf(turn);
    const busy = this.busy === turn.id;
    const text = h("div", { class: "text" }, render(answer.text));
    const element = h("article", { class: `turn assistant ${busy ? "growing" : ""}`, "aria-label": "Answer", "aria-busy": String(busy), "data-turn": turn.id }, text);
    if (busy && !answer.text) text.append(h("span", { class: "waiting", role: "img", "aria-label": "The model is looking" }, h("i", {}), h("i", {}), h("i", {})));
    if (answer.stopped) element.append(h("p", { class: "stopped" }, answer.stopped));
    if (answer.problem) {
      element.append(h("div", { class: "problem", role: "alert" }, h("strong", {}, answer.problem.message), " ", answer.problem.advice,
        h("div", { class: "actions" }, h("button", { type: "button", onClick: () => this.on.again(turn) }, "Try again"))));
    }
    if (!busy) element.append(this.tools(turn, answer, last, element));
    return element;
  }

  private tools(turn: AssistantTurn, answer: Answer, last: boolean, element: HTMLElement): HTMLElement {
    const idle = this.busy === null;
    const tools = h("div", { class: "turn-tools" });
    if (turn.answers.length > 1) {
      tools.append(h("span", { class: "variants" },
        iconButton("left", "The answer before", () => this.on.choose(turn, turn.shown - 1), { disabled: turn.shown === 0 }),
        h("span", {}, `${turn.shown + 1} / ${turn.answers.length}`),
        iconButton("right", "The next answer", () => this.on.choose(turn, turn.shown + 1), { disabled: turn.shown === turn.answers.length - 1 })));
    }
    if (last) {
      tools.append(iconButton("again", "Answer anew", () => this.on.again(turn), { disabled: !idle }));
      if (answer.text) tools.append(iconButton("forward", "Go on with this answer", () => this.on.goOn(turn), { disabled: !idle }));
    }
    if (answer.text) {
      tools.append(iconButton("copy", "Copy the answer", () => copy(answer.text)));
      tools.append(h("button", { type: "button", class: "text-button look-button", disabled: !idle, onClick: () => this.look(turn, element) },
        icon("look"), "Where did it look?"));
    }
    tools.append(iconButton("bin", "Delete this answer and what follows", () => this.on.remove(turn), { disabled: !idle }));
    if (answer.outcome) tools.append(costs(answer.outcome));
    return tools;
  }

  private async look(turn: AssistantTurn, element: HTMLElement): Promise<void> {
    const open = element.querySelector(".look, .look-told");
    if (open) {
      open.remove();
      return;
    }
    if (this.explains !== true) {
      element.append(h("p", { class: "look-told muted" }, this.explains));
      return;
    }
    const waiting = h("p", { class: "look-told muted", role: "status" }, "Looking again…");
    element.append(waiting);
    try {
      const { look, pictures } = await this.on.look(turn);
      const named = pictures.map((id) => ({ url: this.store.url(id), name: this.store.pictures.get(id)?.name ?? "picture" }));
      const panel = look.images.length
        ? lookPanel(look, answerOf(turn).text, named)
        : h("p", { class: "look-told muted" }, "The model was shown no picture for this answer.");
      waiting.replaceWith(panel);
      requestAnimationFrame(() => panel.scrollIntoView({ block: "nearest", behavior: "smooth" }));
    } catch (error) {
      waiting.className = "look-told problem";
      waiting.textContent = error instanceof Error ? error.message : String(error);
    }
  }
}

function costs(outcome: Outcome): HTMLElement {
  const speed = outcome.completionTokens > 1 && outcome.total > outcome.firstToken
    ? (outcome.completionTokens - 1) / (outcome.total - outcome.firstToken)
    : 0;
  const short = [seconds(outcome.total), speed ? `${speed.toFixed(speed < 10 ? 1 : 0)} tokens/s` : ""].filter(Boolean).join(" · ");
  const rows: [string, string][] = [
    ["first token", seconds(outcome.firstToken)],
    ...Object.entries(outcome.timings).map(([step, value]): [string, string] => [STEPS[step] ?? step, seconds(value)]),
    ["prompt", plural(outcome.promptTokens, "position")],
    ["of them pictures", outcome.positions.length > 1 ? `${outcome.imageTokens} (${outcome.positions.join(" + ")})` : String(outcome.imageTokens)],
    ["answer", `${plural(outcome.completionTokens, "token")}${outcome.finish === "length" ? ", cut at its length" : ""}`],
    ...outcome.leftOut.map((each): [string, string] => ["left out", each]),
  ];
  return h("details", { class: "costs" }, h("summary", {}, short),
    h("dl", {}, ...rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
}

const STEPS: Record<string, string> = {
  decode: "reading the pictures",
  preprocess: "preparing them",
  tower: "vision tower",
  projector: "projector",
  prefill: "reading the prompt",
  generate: "writing the answer",
};

function copy(text: string): void {
  navigator.clipboard?.writeText(text).catch(() => undefined);
}

export function picturesShown(turns: readonly Turn[]): string[] {
  return turns.flatMap((turn) => (turn.role === "user" ? picturesOf(turn.pieces).filter((id) => !turn.leftOut.includes(id)) : []));
}
