// Numbers to choose: a slider with its field, and whole numbers that may be left empty. What is out of range is put right.

import { h } from "./dom";
import type { Sampling } from "./types";

type Slid = "temperature" | "top_p" | "top_k" | "min_p" | "repetition_penalty";

const SLIDERS: { key: Slid; label: string; about: string; min: number; max: number; step: number }[] = [
  { key: "temperature", label: "Temperature", about: "0 always takes the likeliest word", min: 0, max: 2, step: 0.05 },
  { key: "top_p", label: "Top p", about: "the likeliest words up to this share", min: 0.05, max: 1, step: 0.05 },
  { key: "top_k", label: "Top k", about: "at most so many words; 0 is all", min: 0, max: 200, step: 1 },
  { key: "min_p", label: "Min p", about: "none below this share of the likeliest", min: 0, max: 0.5, step: 0.01 },
  { key: "repetition_penalty", label: "Repetition penalty", about: "1 is none", min: 0.8, max: 2, step: 0.05 },
];

export function sliders(sampling: Sampling, change: (part: Partial<Sampling>) => void): HTMLElement[] {
  return SLIDERS.map(({ key, label, about, min, max, step }) => {
    const bounds = { min: String(min), max: String(max), step: key === "top_k" ? "1" : "any", value: String(sampling[key]) };
    const number = h("input", { type: "number", "aria-label": `${label}, as a number`, ...bounds });
    const slider = h("input", { type: "range", id: `set-${key}`, ...bounds, step: String(step) });
    let last = sampling[key];
    const take = (given: number): void => {
      const whole = key === "top_k" ? Math.round(given) : given;
      if (Number.isFinite(whole)) last = Math.min(max, Math.max(min, whole));
      number.value = slider.value = String(last);
      change({ [key]: last });
    };
    slider.addEventListener("input", () => take(slider.valueAsNumber));
    number.addEventListener("change", () => take(number.valueAsNumber));
    return h("div", { class: "setting" }, h("label", { for: slider.id }, label, h("span", { class: "muted" }, about)), h("div", { class: "slide" }, slider, number));
  });
}

/** A whole number of at least `least`, or none. */
export function wholeNumber(
  { key, label, about, least }: { key: string; label: string; about: string; least: number },
  value: number | null,
  take: (value: number | null) => void,
): HTMLElement {
  const input = h("input", {
    type: "number",
    id: `set-${key}`,
    min: String(least),
    step: "1",
    value: value === null ? "" : String(value),
    onChange: () => {
      const given = input.valueAsNumber;
      const right = Number.isFinite(given) ? Math.min(Math.max(Math.round(given), least), 2 ** 31 - 1) : null;
      input.value = right === null ? "" : String(right);
      take(right);
    },
  });
  return h("div", { class: "setting line" }, h("label", { for: input.id }, label, h("span", { class: "muted" }, about)), input);
}
