// The meter of the context: what text, each picture and the answer take, and what would be left out next.

import { h, plural } from "./dom";
import type { Count } from "./types";

export class Meter {
  readonly element: HTMLElement;
  private readonly bar = h("div", { class: "meter-bar", role: "img" });
  private readonly words = h("span", { class: "meter-words" });
  private readonly next = h("p", { class: "meter-next" });
  private readonly legend = h("ul", { class: "meter-legend" });
  private readonly about = h("p", { class: "meter-about" });

  constructor() {
    this.element = h("details", { class: "meter", hidden: true },
      h("summary", {}, this.bar, this.words),
      h("div", { class: "meter-more" }, this.legend, this.next, this.about));
  }

  /** Says that what is shown is being counted anew, or that it is right. */
  busy(busy: boolean): void {
    this.element.setAttribute("aria-busy", String(busy));
  }

  /** `names` are those of the pictures that are sent, in order. */
  show(count: Count | null, names: string[], reason = ""): void {
    this.element.hidden = !count && !reason;
    this.element.classList.toggle("over", reason !== "" || (count !== null && !count.fits));
    this.element.classList.toggle("told", reason !== "");
    if (!count) {
      this.bar.replaceChildren();
      this.words.textContent = reason;
      this.legend.replaceChildren();
      this.next.textContent = this.about.textContent = "";
      return;
    }
    const pictures = count.messages.flatMap((turn) =>
      turn.pictures.map((positions, at) => ({ positions, out: turn.left_out || (turn.pictures_left_out[at] ?? false) })),
    );
    const each = pictures[0]?.positions;
    this.about.textContent = `A position is one place in what the model can hold at once: about three quarters of a word${each ? `, and a picture takes as many as it has patches (here ${each.toLocaleString("en")})` : ""}.`;
    const answer = Math.min(count.answer, Math.max(0, count.context - count.total));
    const rest = Math.max(0, count.context - count.total - answer);
    const parts = [
      { kind: "text", label: "text", positions: count.text },
      ...pictures.flatMap(({ positions, out }, at) =>
        out ? [] : [{ kind: "picture", label: names[at] ?? `picture ${at + 1}`, positions }]),
      { kind: "answer", label: "room for the answer", positions: answer },
      { kind: "rest", label: "free", positions: rest },
    ];
    const whole = Math.max(count.context, count.total);
    this.bar.replaceChildren(...parts.map(({ kind, label, positions }) => {
      const slice = h("span", { class: `slice ${kind}`, title: `${label}: ${plural(positions, "position")}` });
      slice.style.flexGrow = String(positions / whole);
      return slice;
    }));
    const used = `${count.total.toLocaleString("en")} of ${plural(count.context, "position")}`;
    this.bar.setAttribute("aria-label", `Context: ${used}; text ${count.text}, pictures ${count.pictures}`);
    this.words.textContent = reason || used;
    this.words.dataset.total = String(count.total);
    this.legend.replaceChildren(
      ...parts.map(({ kind, label, positions }) =>
        h("li", {}, h("span", { class: `dot ${kind}` }), h("span", { class: "legend-label" }, label), h("span", { class: "legend-value" }, positions.toLocaleString("en")))),
      ...pictures.flatMap(({ positions, out }, at) =>
        out ? [h("li", { class: "out" }, h("span", { class: "dot" }), h("span", { class: "legend-label" }, `${names[at] ?? `picture ${at + 1}`}, left out`), h("span", { class: "legend-value" }, positions.toLocaleString("en")))] : []),
    );
    this.next.textContent = [...count.left_out.map((each) => `Left out: ${each}.`), count.next ? `Next to be left out: ${count.next}` : "", count.fits ? "" : "This does not fit: leave pictures out, or shorten the question.", shorter(count)].filter(Boolean).join(" ");
  }
}

/** What is said where the answer gets less room than is kept free for it. */
function shorter(count: Count): string {
  const room = count.context - count.total;
  return count.fits && room < count.answer ? `The answer has room for ${plural(room, "token")}.` : "";
}
