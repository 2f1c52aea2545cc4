// Where the model looked: a smooth overlay over a picture for a word, and the words that a picture drew.

import { h } from "./dom";
import type { Box, Look } from "./types";

// from violet over magenta to pale yellow in even steps of lightness (after matplotlib's inferno)
const COLOURS: [number, number, number][] = [
  [40, 11, 84],
  [101, 21, 110],
  [159, 42, 99],
  [212, 72, 66],
  [245, 125, 21],
  [250, 193, 39],
  [252, 255, 164],
];
const FINE = 144; // pixels of the overlay's own picture on each side

/** The picture with a canvas over it. `show` paints one word's grid; null clears it. */
export class Overlay {
  readonly element: HTMLElement;
  private readonly canvas = h("canvas", { class: "heat", width: FINE, height: FINE, "aria-hidden": "true" });

  constructor(url: string, name: string, box: Box) {
    const [left, top, width, height] = box;
    this.canvas.style.left = `${left * 100}%`;
    this.canvas.style.top = `${top * 100}%`;
    this.canvas.style.width = `${width * 100}%`;
    this.canvas.style.height = `${height * 100}%`;
    this.element = h("div", { class: "looked" }, h("img", { src: url, alt: name }), this.canvas);
  }

  show(grid: number[][] | null): void {
    const context = this.canvas.getContext("2d");
    if (!context) return;
    context.clearRect(0, 0, FINE, FINE);
    this.element.classList.toggle("lit", grid !== null);
    if (!grid) return;
    const image = context.createImageData(FINE, FINE);
    const fine = smooth(grid, FINE);
    const most = fine.reduce((one, other) => Math.max(one, other), 1e-6);
    for (let at = 0; at < FINE * FINE; at++) {
      const value = fine[at]! / most;
      const [red, green, blue] = colour(value);
      image.data.set([red, green, blue, Math.round(240 * value ** 0.9)], 4 * at);
    }
    context.putImageData(image, 0, 0);
  }
}

function colour(value: number): [number, number, number] {
  const at = Math.min(Math.max(value, 0), 0.9999) * (COLOURS.length - 1);
  const low = COLOURS[Math.floor(at)]!;
  const high = COLOURS[Math.floor(at) + 1]!;
  const part = at - Math.floor(at);
  return [0, 1, 2].map((channel) => Math.round(low[channel]! + part * (high[channel]! - low[channel]!))) as [number, number, number];
}

/** A grid enlarged to a square with cubic B-splines: smooth, and never above its own highest value. */
export function smooth(grid: number[][], side: number): Float32Array {
  const rows = grid.length;
  const columns = grid[0]?.length ?? 0;
  const across = new Float32Array(rows * side);
  for (let row = 0; row < rows; row++) {
    for (let x = 0; x < side; x++) across[row * side + x] = spline((at) => grid[row]![at]!, columns, place(x, side, columns));
  }
  const fine = new Float32Array(side * side);
  for (let x = 0; x < side; x++) {
    for (let y = 0; y < side; y++) fine[y * side + x] = spline((at) => across[at * side + x]!, rows, place(y, side, rows));
  }
  return fine;
}

function place(at: number, side: number, count: number): number {
  return ((at + 0.5) / side) * count - 0.5;
}

function spline(value: (at: number) => number, count: number, at: number): number {
  const first = Math.floor(at);
  const t = at - first;
  const weights = [(1 - t) ** 3, 3 * t ** 3 - 6 * t ** 2 + 4, -3 * t ** 3 + 3 * t ** 2 + 3 * t + 1, t ** 3];
  let sum = 0;
  for (const [step, weight] of weights.entries()) {
    sum += (weight / 6) * value(Math.min(Math.max(first - 1 + step, 0), count - 1));
  }
  return sum;
}

const STOP_WORDS = new Set(
  ("a an the this that these those it its is are was were be been being am i you he she they we me him her them my your his their our " +
    "of in on at to by for from with without as and or but not no so if then than there here which who what when where how why " +
    "do does did has have had can could will would may might shall should must very just only also into onto over under some any " +
    "one both each other another such same too s t").split(" "),
);

/** Whether a word says something by itself: no article, no preposition, no comma. */
function tells(word: string): boolean {
  const bare = word.toLowerCase().replace(/[^\p{L}\p{N}]/gu, "");
  return bare !== "" && !STOP_WORDS.has(bare);
}

/** The answer's words to point at, the pictures they looked at, and the words each picture drew most. */
export function lookPanel(look: Look, text: string, pictures: { url: string; name: string }[]): HTMLElement {
  const overlays = look.images.map((image) => {
    const picture = pictures[image.index];
    return new Overlay(picture?.url ?? "", picture?.name ?? "", image.box);
  });
  const caption = h("p", { class: "look-caption", role: "status" }, "Point at a word, or walk through them with Tab.");
  const words: HTMLButtonElement[] = [];
  let chosen: number | null = null;

  const show = (at: number | null): void => {
    const word = at === null ? null : look.words[at];
    for (const [which, overlay] of overlays.entries()) {
      const index = look.images[which]!.index;
      overlay.show(word?.images.find((image) => image.index === index)?.grid ?? null);
    }
    words.forEach((button, which) => button.classList.toggle("lit", which === at));
    if (word) caption.textContent = `Brightest where the model looked for “${word.text.trim()}”.`;
  };
  const pick = (at: number): void => {
    chosen = chosen === at ? null : at;
    words.forEach((button, which) => button.setAttribute("aria-pressed", String(which === chosen)));
    show(chosen ?? at);
  };

  const line = h("p", { class: "look-words" });
  let after = 0;
  for (const [at, word] of look.words.entries()) {
    line.append(text.slice(after, word.start));
    const button = h("button", {
      type: "button",
      class: "look-word",
      "aria-pressed": "false",
      onMouseenter: () => show(at),
      onFocus: () => show(at),
      onMouseleave: () => show(chosen),
      onClick: () => pick(at),
    }, text.slice(word.start, word.end));
    words.push(button);
    line.append(button);
    after = word.end;
  }
  line.append(text.slice(after));

  const figures = overlays.map((overlay, which) => {
    const image = look.images[which]!;
    const drew = image.words.filter((each) => look.words[each.word] && tells(look.words[each.word]!.text)).slice(0, 6);
    return h("figure", { class: "look-figure" }, overlay.element,
      drew.length > 0 && h("figcaption", {}, h("span", { class: "muted" }, "It drew "),
        ...drew.map((each) => h("button", {
          type: "button",
          class: "tag",
          onMouseenter: () => show(each.word),
          onFocus: () => show(each.word),
          onMouseleave: () => show(chosen),
          onClick: () => pick(each.word),
        }, look.words[each.word]!.text.trim()))));
  });
  return h("div", { class: "look", role: "group", "aria-label": "Where the model looked" }, line, h("div", { class: "look-figures" }, ...figures), caption);
}
