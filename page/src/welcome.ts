// The first visit: what this is, pictures to try, and the way to a larger model.

import { h, logo } from "./dom";
import type { Info, Sample } from "./types";

export function welcome(info: Info | null, pick: (sample: Sample) => void): HTMLElement {
  const samples = (info?.samples ?? []).map((sample) =>
    h("button", { type: "button", class: "sample", onClick: () => pick(sample) },
      h("img", { src: sample.picture, alt: sample.title, loading: "lazy" }),
      h("span", {}, sample.question)));
  return h("section", { class: "welcome" },
    logo(),
    h("h1", {}, "What would you like to know about a picture?"),
    h("p", { class: "lead" }, "Drop one anywhere, paste it, or choose a file. It stands in your question where you put it."),
    samples.length > 0 && h("div", { class: "samples", role: "group", "aria-label": "Pictures to try" }, ...samples),
    info?.bundled && h("div", { class: "about" },
      h("p", {}, h("strong", {}, "You are talking to thimble. "),
        "It is a very small model that comes with Trifocal and runs on any machine. It knows drawn things, shapes, colours, counts, places and short words. Photographs are beyond it, and it says so."),
      h("p", {}, "For photographs, start the server with a real LLaVA:"),
      h("pre", {}, h("code", {}, (info.needs ?? []).join("\n")))));
}
