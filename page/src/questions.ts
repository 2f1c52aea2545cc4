// A question as it is read: its text with the pictures at their places, dimmed where the model is not shown them.

import { copyButton } from "./copying";
import { h, icon, iconButton, moment } from "./dom";
import type { Store } from "./store";
import type { UserTurn } from "./types";
import { picturesOf, textOf } from "./types";
import { isPlaced } from "./wire";

export interface QuestionActions {
  edit: (turn: UserTurn) => void;
  remove: (turn: UserTurn) => void;
  askAgain: (turn: UserTurn) => void;
  keep: (turn: UserTurn, picture: string, keep: boolean) => void;
  show: (picture: string) => void;
}

export interface QuestionState {
  /** An answer is under way in this chat. */
  busy: boolean;
  /** The model is not shown this turn any more. */
  outside: boolean;
  /** Pictures that the server leaves out. */
  dropped: readonly string[];
  /** No answer stands below it. */
  unanswered: boolean;
}

export function question(turn: UserTurn, state: QuestionState, store: Store, on: QuestionActions): HTMLElement {
  const placed = isPlaced(turn.pieces);
  const body = h("div", { class: placed ? "bubble placed" : "bubble", dir: "auto" });
  for (const piece of turn.pieces) {
    if ("picture" in piece) body.append(picture(turn, piece.picture, state, store, on));
    else if (piece.text.trim()) body.append(h("span", { class: "said" }, placed ? piece.text : piece.text.trim()));
  }
  return h("article", { class: `turn user ${state.outside ? "outside" : ""}`, "aria-label": "Your question", "data-turn": turn.id }, body,
    h("div", { class: "turn-tools" },
      moment(turn.at),
      iconButton("edit", "Edit and ask again", () => on.edit(turn), { disabled: state.busy }),
      copyButton("Copy the text", () => textOf(turn.pieces)),
      iconButton("bin", "Delete the question and its answer", () => on.remove(turn), { disabled: state.busy }),
      state.unanswered && h("button", { type: "button", class: "text-button ask-again", disabled: state.busy, onClick: () => on.askAgain(turn) }, icon("again"), "Ask again")));
}

function picture(turn: UserTurn, id: string, state: QuestionState, store: Store, on: QuestionActions): HTMLElement {
  const found = store.picture(id);
  const out = turn.leftOut.includes(id);
  const dropped = !out && (state.outside || state.dropped.includes(id));
  const name = found?.name ?? "a picture that is missing";
  const eye = h("button", {
    type: "button",
    class: "keep",
    "aria-pressed": String(!out),
    "aria-label": out ? `Show ${name} to the model again` : `Leave ${name} out`,
    title: out ? "Left out: the model is not shown it. Press to keep it." : "Kept: the model is shown it. Press to leave it out.",
    onClick: () => on.keep(turn, id, out),
  }, icon(out ? "eyeOff" : "eye"));
  const shown = found
    ? h("button", { type: "button", class: "sent-open", "aria-label": `Enlarge ${name}`, title: found.note ? `${name}: ${found.note}` : name, onClick: () => on.show(id) }, h("img", { src: store.url(id), alt: name }))
    : h("span", { class: "sent-missing" }, icon("picture"), "This picture is missing in this browser");
  const words = out ? "left out" : dropped ? "not shown any more" : "";
  return h("figure", { class: `sent ${out ? "out" : ""} ${dropped ? "dropped" : ""}`, "data-picture": id }, shown, eye, words && h("figcaption", {}, words));
}

/** What a question's look depends on, beside its turn. */
export function picturesKnown(turn: UserTurn, store: Store): string {
  return picturesOf(turn.pieces).map((id) => (store.picture(id) ? "1" : "0")).join("");
}
