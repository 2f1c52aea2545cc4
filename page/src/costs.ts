// What an answer cost, as the server told it: seconds of each step, positions, tokens.

import { h, plural, seconds } from "./dom";
import { opens } from "./popover";
import type { Outcome } from "./types";

const STEPS: Record<string, string> = {
  decode: "opening the pictures",
  preprocess: "preparing them",
  tower: "vision tower",
  projector: "projector",
  prefill: "reading the prompt",
  generate: "writing the answer",
};

export function costs(outcome: Outcome): HTMLElement {
  const speed = outcome.completionTokens > 1 && outcome.total > outcome.firstToken
    ? (outcome.completionTokens - 1) / (outcome.total - outcome.firstToken)
    : 0;
  const short = [seconds(outcome.total), speed ? `${speed.toFixed(speed < 10 ? 1 : 0)} tokens/s` : ""].filter(Boolean).join(" · ");
  const button = h("button", { type: "button", class: "text-button costs", title: "What this answer cost", "data-prompt": String(outcome.promptTokens) }, short);
  return opens(button, "What this answer cost", () => [
    h("dl", { class: "cost-list" }, ...rows(outcome).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
  ]);
}

function rows(outcome: Outcome): [string, string][] {
  return [
    ...(outcome.model ? [["model", outcome.model] as [string, string]] : []),
    ["first token", seconds(outcome.firstToken)],
    ...Object.entries(outcome.timings).map(([step, value]): [string, string] => [STEPS[step] ?? step, seconds(value)]),
    ["prompt", plural(outcome.promptTokens, "position")],
    ["of them pictures", outcome.positions.length > 1 ? `${outcome.imageTokens} (${outcome.positions.join(" + ")})` : String(outcome.imageTokens)],
    ["answer", `${plural(outcome.completionTokens, "token")}${outcome.finish === "length" ? ", cut at its length" : ""}`],
    ...outcome.leftOut.map((each): [string, string] => ["left out", each]),
  ];
}
