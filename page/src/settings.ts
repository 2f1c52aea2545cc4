// The panel at the right: how answers are drawn, the system text and template, for this chat or for every new one.

import { keepPresets, ownPresets } from "./choices";
import { h, iconButton } from "./dom";
import { modelCard } from "./header";
import { keepingFocus } from "./popover";
import { sliders, wholeNumber } from "./sliders";
import type { Info, Sampling, Settings } from "./types";
import { PLAIN, PRESETS } from "./types";

export interface SettingsActions {
  /** The settings of this chat, or of every new one. */
  get: (ofNewChats: boolean) => Settings;
  set: (ofNewChats: boolean, settings: Settings) => void;
  /** Whether this chat has settings of its own. */
  own: () => boolean;
  /** This chat takes those of every new chat again. */
  reset: () => void;
  close: () => void;
}

export class SettingsPanel {
  readonly element: HTMLElement;
  private readonly body = h("div", { class: "panel-body" });
  private ofNewChats = false;

  constructor(
    private readonly info: () => Info | null,
    private readonly on: SettingsActions,
  ) {
    this.element = h("aside", { class: "panel settings", id: "settings", "aria-label": "Settings" },
      h("header", {}, h("h2", {}, "Settings"), iconButton("close", "Close the settings", on.close)), this.body);
  }

  /** Takes what is half written in a field as if it were left: it is about to be drawn anew. */
  takeWritten(): void {
    const writing = document.activeElement;
    if (writing?.matches("textarea, input[type=number]") && this.body.contains(writing)) writing.dispatchEvent(new Event("change"));
  }

  draw(): void {
    const info = this.info();
    const focused = document.activeElement?.id;
    const top = this.body.scrollTop;
    keepingFocus(() => this.body.replaceChildren(
      ...(info ? [h("section", {}, ...modelCard(info))] : []),
      this.scope(),
      this.pictures(),
      this.presets(),
      this.drawing(),
      this.talk(info),
    ));
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
    this.body.scrollTop = top;
  }

  private get settings(): Settings {
    return this.on.get(this.ofNewChats);
  }

  private set(change: Partial<Settings>): void {
    this.on.set(this.ofNewChats, { ...this.settings, ...change });
    this.body.querySelector(".own-settings")?.replaceWith(this.owned());
  }

  private sampling(change: Partial<Sampling>): void {
    this.set({ sampling: { ...this.settings.sampling, ...change } });
  }

  private scope(): HTMLElement {
    const choice = (label: string, ofNewChats: boolean): HTMLElement =>
      h("button", { type: "button", class: "choice", "aria-pressed": String(this.ofNewChats === ofNewChats), onClick: () => { this.ofNewChats = ofNewChats; this.draw(); } }, label);
    return h("section", {}, h("h3", {}, "These settings hold for"),
      h("div", { class: "choices", role: "group", "aria-label": "These settings hold for" }, choice("This chat", false), choice("Every new chat", true)), this.owned());
  }

  private owned(): HTMLElement {
    const own = !this.ofNewChats && this.on.own();
    return h("p", { class: "muted own-settings" },
      this.ofNewChats ? "Chats that have no settings of their own take these." : own ? "This chat has settings of its own. " : "This chat takes those of every new chat, until one is changed here.",
      own && h("button", { type: "button", class: "link", onClick: () => { this.on.reset(); this.draw(); } }, "Take those of every new chat"));
  }

  private pictures(): HTMLElement {
    const box = h("input", { type: "checkbox", id: "all-images", checked: this.settings.allImages, onChange: () => this.set({ allImages: box.checked }) });
    return h("section", {}, h("h3", {}, "Pictures"),
      h("label", { class: "switch", for: "all-images" }, box, h("span", {}, "Embed all images, not only the last one")),
      h("p", { class: "muted" }, "The eye on each picture leaves it out by itself."));
  }

  private presets(): HTMLElement {
    const own = ownPresets();
    const apart = (sampling: Sampling): string => JSON.stringify({ ...sampling, seed: null, max_tokens: null, stop: [] });
    const now = apart(this.settings.sampling);
    const chips = [...PRESETS, ...own].map((preset, at) =>
      h("span", { class: "preset" },
        h("button", {
          type: "button",
          class: "choice",
          "aria-pressed": String(apart({ ...PLAIN, ...preset.sampling }) === now),
          onClick: () => {
            const { seed, max_tokens, stop } = this.settings.sampling;
            this.set({ sampling: { ...PLAIN, ...preset.sampling, seed, max_tokens, stop } });
            this.draw();
          },
        }, preset.name),
        at >= PRESETS.length && iconButton("close", `Forget the preset ${preset.name}`, () => {
          keepPresets(own.filter((each) => each !== preset));
          this.draw();
        })));
    const name = h("input", { type: "text", placeholder: "Name", "aria-label": "Name of a new preset", maxLength: 40 });
    const keep = (): void => {
      const wanted = name.value.trim();
      if (!wanted) return name.focus();
      keepPresets([...own.filter((each) => each.name !== wanted), { name: wanted, sampling: { ...this.settings.sampling } }]);
      this.draw();
    };
    return h("section", {}, h("h3", {}, "Presets"), h("div", { class: "choices" }, ...chips),
      h("div", { class: "row" }, name, h("button", { type: "button", onClick: keep }, "Keep as a preset")));
  }

  private drawing(): HTMLElement {
    const { sampling } = this.settings;
    return h("section", {}, h("h3", {}, "How answers are drawn"), ...sliders(sampling, (change) => this.sampling(change)),
      wholeNumber({ key: "max_tokens", label: "Longest answer", about: "tokens; empty is as many as fit", least: 1 }, sampling.max_tokens, (max_tokens) => this.sampling({ max_tokens })),
      wholeNumber({ key: "seed", label: "Seed", about: "the same answer again; empty is a new one", least: 0 }, sampling.seed, (seed) => this.sampling({ seed })),
      this.stops(sampling));
  }

  private stops(sampling: Sampling): HTMLElement {
    const input = h("textarea", {
      id: "set-stop",
      rows: 2,
      value: sampling.stop.join("\n"),
      onChange: () => {
        const stop = input.value.split("\n").filter(Boolean).slice(0, 16).map((each) => each.slice(0, 256));
        input.value = stop.join("\n");
        this.sampling({ stop });
      },
    });
    return h("div", { class: "setting" }, h("label", { for: "set-stop" }, "Stop at", h("span", { class: "muted" }, "one text a line, at most 16")), input);
  }

  private talk(info: Info | null): HTMLElement {
    const settings = this.settings;
    const template = settings.template ?? info?.template ?? "";
    const standard = info?.systems?.[template] ?? info?.system ?? "";
    const text = h("textarea", {
      id: "set-system",
      rows: 5,
      dir: "auto",
      value: settings.system ?? standard,
      placeholder: "No system text",
      onChange: () => {
        this.set({ system: text.value === standard ? null : text.value });
        back.disabled = this.settings.system === null;
      },
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
      disabled: settings.system === null,
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
