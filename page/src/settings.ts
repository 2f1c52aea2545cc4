// The panel at the right: how answers are drawn, the system text and template, and the model's three parts.

import { h, iconButton, megabytes } from "./dom";
import { saveSettings } from "./store";
import type { Info, Sampling, Settings } from "./types";
import { PLAIN, PRESETS } from "./types";

type Number = "temperature" | "top_p" | "top_k" | "min_p" | "repetition_penalty";

const SLIDERS: { key: Number; label: string; about: string; min: number; max: number; step: number }[] = [
  { key: "temperature", label: "Temperature", about: "0 always takes the likeliest word", min: 0, max: 2, step: 0.05 },
  { key: "top_p", label: "Top p", about: "the likeliest words up to this share", min: 0.05, max: 1, step: 0.05 },
  { key: "top_k", label: "Top k", about: "at most so many words; 0 is all", min: 0, max: 200, step: 1 },
  { key: "min_p", label: "Min p", about: "none below this share of the likeliest", min: 0, max: 0.5, step: 0.01 },
  { key: "repetition_penalty", label: "Repetition penalty", about: "1 is none", min: 0.8, max: 2, step: 0.05 },
];

export class SettingsPanel {
  readonly element: HTMLElement;
  private readonly body = h("div", { class: "panel-body" });

  constructor(
    readonly settings: Settings,
    private readonly info: () => Info | null,
    private readonly changed: () => void,
    close: () => void,
  ) {
    this.element = h("aside", { class: "panel settings", id: "settings", "aria-label": "Settings" },
      h("header", {}, h("h2", {}, "Settings"), iconButton("close", "Close the settings", close)), this.body);
  }

  draw(): void {
    const info = this.info();
    this.body.replaceChildren(
      ...(info ? [this.model(info)] : []),
      this.pictures(),
      this.presets(),
      this.drawing(),
      this.talk(info),
    );
  }

  private set(change: Partial<Settings>): void {
    Object.assign(this.settings, change);
    saveSettings(this.settings);
    this.changed();
  }

  private sampling(change: Partial<Sampling>): void {
    this.set({ sampling: { ...this.settings.sampling, ...change } });
  }

  private model(info: Info): HTMLElement {
    const lenses = info.parts.map((part) =>
      h("li", { class: `part ${part.part}` },
        h("span", { class: "part-dot", "aria-hidden": "true" }),
        h("div", {},
          h("strong", {}, NAMES[part.part]), h("span", { class: "muted" }, part.what),
          h("span", { class: "part-place" }, `${part.device} · ${part.dtype} · ${megabytes(part.bytes)}`))));
    return h("section", {}, h("h3", {}, info.name), h("p", { class: "muted" }, `${info.family}, ${info.context.toLocaleString("en")} positions of context. ${info.fit_words}`), h("ul", { class: "parts" }, ...lenses));
  }

  private pictures(): HTMLElement {
    const box = h("input", { type: "checkbox", id: "all-images", checked: this.settings.allImages, onChange: () => this.set({ allImages: box.checked }) });
    return h("section", {}, h("h3", {}, "Pictures"),
      h("label", { class: "switch", for: "all-images" }, box, h("span", {}, "Embed all images, not only the last one")),
      h("p", { class: "muted" }, "The eye on each picture leaves it out by itself."));
  }

  private presets(): HTMLElement {
    const same = (one: Sampling): boolean => JSON.stringify({ ...one, seed: null, max_tokens: null, stop: [] }) === JSON.stringify({ ...this.settings.sampling, seed: null, max_tokens: null, stop: [] });
    const chips = [...PRESETS, ...this.settings.own].map((preset, at) =>
      h("span", { class: "preset" },
        h("button", {
          type: "button",
          class: "choice",
          "aria-pressed": String(same(preset.sampling)),
          onClick: () => {
            const { seed, max_tokens, stop } = this.settings.sampling;
            this.set({ sampling: { ...PLAIN, ...preset.sampling, seed, max_tokens, stop } });
            this.draw();
          },
        }, preset.name),
        at >= PRESETS.length && iconButton("close", `Forget the preset ${preset.name}`, () => {
          this.set({ own: this.settings.own.filter((each) => each !== preset) });
          this.draw();
        })));
    const name = h("input", { type: "text", placeholder: "Name", "aria-label": "Name of a new preset", maxLength: 40 });
    const keep = (): void => {
      if (!name.value.trim()) return name.focus();
      const own = this.settings.own.filter((each) => each.name !== name.value.trim());
      this.set({ own: [...own, { name: name.value.trim(), sampling: { ...this.settings.sampling } }] });
      this.draw();
    };
    return h("section", {}, h("h3", {}, "Presets"), h("div", { class: "choices" }, ...chips),
      h("div", { class: "row" }, name, h("button", { type: "button", onClick: keep }, "Keep as a preset")));
  }

  private drawing(): HTMLElement {
    const { sampling } = this.settings;
    const sliders = SLIDERS.map(({ key, label, about, min, max, step }) => {
      const number = h("input", { type: "number", "aria-label": label, min: String(min), max: String(max), step: String(step), value: String(sampling[key]) });
      const slider = h("input", { type: "range", id: `set-${key}`, min: String(min), max: String(max), step: String(step), value: String(sampling[key]) });
      const take = (value: number): void => {
        if (!Number.isFinite(value)) return;
        this.sampling({ [key]: Math.min(max, Math.max(min, value)) });
      };
      slider.addEventListener("input", () => {
        number.value = slider.value;
        take(slider.valueAsNumber);
      });
      number.addEventListener("change", () => {
        slider.value = number.value;
        take(number.valueAsNumber);
      });
      return h("div", { class: "setting" }, h("label", { for: `set-${key}` }, label, h("span", { class: "muted" }, about)), h("div", { class: "slide" }, slider, number));
    });
    return h("section", {}, h("h3", {}, "How answers are drawn"), ...sliders,
      this.field("max_tokens", "Longest answer", "tokens; empty is as many as fit", sampling.max_tokens, (value) => this.sampling({ max_tokens: value && value >= 1 ? Math.floor(value) : null })),
      this.field("seed", "Seed", "the same answer again; empty is a new one", sampling.seed, (value) => this.sampling({ seed: value === null ? null : Math.floor(value) })),
      this.stops(sampling));
  }

  private field(key: string, label: string, about: string, value: number | null, take: (value: number | null) => void): HTMLElement {
    const input = h("input", { type: "number", id: `set-${key}`, value: value === null ? "" : String(value), onChange: () => take(input.value === "" ? null : input.valueAsNumber) });
    return h("div", { class: "setting line" }, h("label", { for: input.id }, label, h("span", { class: "muted" }, about)), input);
  }

  private stops(sampling: Sampling): HTMLElement {
    const input = h("textarea", {
      id: "set-stop",
      rows: 2,
      value: sampling.stop.join("\n"),
      onChange: () => this.sampling({ stop: input.value.split("\n").filter(Boolean).slice(0, 16) }),
    });
    return h("div", { class: "setting" }, h("label", { for: "set-stop" }, "Stop at", h("span", { class: "muted" }, "one text a line")), input);
  }

  private talk(info: Info | null): HTMLElement {
    const template = this.settings.template ?? info?.template ?? "";
    const standard = info?.systems?.[template] ?? info?.system ?? "";
    const text = h("textarea", {
      id: "set-system",
      rows: 5,
      value: this.settings.system ?? standard,
      placeholder: "No system text",
      onChange: () => this.set({ system: text.value === standard ? null : text.value }),
    });
    const select = h("select", {
      id: "set-template",
      onChange: () => {
        this.set({ template: select.value === info?.template ? null : select.value });
        this.draw();
      },
    }, ...(info?.templates ?? []).map((name) => h("option", { value: name, selected: name === template }, name === info?.template ? `${name} (the model's own)` : name)));
    const back = h("button", {
      type: "button",
      disabled: this.settings.system === null,
      onClick: () => {
        this.set({ system: null });
        this.draw();
      },
    }, "Back to the template's own");
    return h("section", {}, h("h3", {}, "Conversation"),
      h("div", { class: "setting" }, h("label", { for: "set-template" }, "Template"), select),
      h("div", { class: "setting" }, h("label", { for: "set-system" }, "System text"), text, back));
  }
}

const NAMES = { tower: "Vision tower", projector: "Projector", language: "Language model" };
