// The line at the top: the chat's title, the model with its three parts, and what can be done with the chat.

import { helpDialog } from "./dialogs";
import { h, icon, iconButton, logo, megabytes, plural } from "./dom";
import { opens } from "./popover";
import { themeButton } from "./theme";
import type { Info } from "./types";

const NAMES = { tower: "Vision tower", projector: "Projector", language: "Language model" };

export interface HeaderActions {
  chats: () => void;
  settings: () => void;
  rename: (title: string) => void;
  exportChat: () => void;
  removeChat: () => void;
  choose: (model: string) => void;
}

/** What the header shows of the model. */
export interface Shown {
  info: Info | null;
  /** The model that the chat asks; null where there is but one. */
  model: string | null;
  loading: boolean;
}

export class Header {
  readonly element: HTMLElement;
  private readonly title = h("h1", { class: "title", dir: "auto" }, "New chat");
  private readonly model = h("button", { type: "button", class: "model-button", hidden: true });
  private readonly chat: HTMLButtonElement;
  private info: Info | null = null;
  private models: readonly string[] = [];
  private chosen = "";

  constructor(private readonly on: HeaderActions) {
    opens(this.model, "The model", () => [...this.choices(), ...(this.info ? modelCard(this.info) : [])]);
    this.chat = opens(h("button", { type: "button", class: "icon-button", "aria-label": "This chat", title: "This chat" }, icon("more")), "This chat", () => this.menu());
    this.element = h("header", { class: "top" },
      iconButton("menu", "Chats", on.chats, { class: "only-small", "aria-controls": "talks" }),
      this.title, this.model, this.chat,
      themeButton(),
      iconButton("help", "Keys", helpDialog, { class: "not-small" }),
      iconButton("tune", "Settings", on.settings, { "aria-controls": "settings", "aria-expanded": "false", id: "settings-button" }));
  }

  draw(title: string, { info, model, loading }: Shown, kept: boolean): void {
    this.title.textContent = title || "New chat";
    this.title.title = title;
    this.chat.hidden = !kept;
    const name = model ?? info?.name ?? "";
    this.info = info?.name === name ? info : null;
    this.models = info?.models ?? [];
    this.chosen = name;
    this.model.hidden = !info;
    const words = loading ? `${name}, loading…` : name;
    if (this.model.dataset.words === words) return;
    this.model.dataset.words = words;
    this.model.replaceChildren(logo(), h("span", {}, words));
    this.model.setAttribute("aria-label", `The model: ${words}`);
    this.model.setAttribute("aria-busy", String(loading));
  }

  /** Where there are several, one button each. */
  private choices(): HTMLElement[] {
    if (this.models.length < 2) return [];
    return [h("div", { class: "models", role: "group", "aria-label": "Models" }, ...this.models.map((name) =>
      h("button", { type: "button", class: "menu-item", "aria-pressed": String(name === this.chosen), "data-closes": "", onClick: () => this.on.choose(name) },
        name === this.chosen ? icon("check") : h("span", { class: "icon" }), h("span", {}, name))))];
  }

  private menu(): HTMLElement[] {
    const item = (name: Parameters<typeof icon>[0], words: string, act: () => void, closes = true): HTMLElement =>
      h("button", { type: "button", class: "menu-item", ...(closes ? { "data-closes": "" } : {}), onClick: act }, icon(name), words);
    return [
      item("edit", "Rename", () => this.rename()),
      item("down", "Export as Markdown", this.on.exportChat),
      item("bin", "Delete", this.on.removeChat),
    ];
  }

  private rename(): void {
    const input = h("input", { type: "text", class: "title-rename", value: this.title.title, "aria-label": "Name of the chat", maxLength: 120 });
    let ended = false;
    const end = (keep: boolean): void => {
      if (ended) return;
      ended = true;
      input.replaceWith(this.title);
      if (keep && input.value.trim()) this.on.rename(input.value.trim());
    };
    input.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") end(false);
    });
    input.addEventListener("blur", () => end(true));
    this.title.replaceWith(input);
    setTimeout(() => input.select());
  }
}

/** The model, its parts and where they are. */
export function modelCard(info: Info): HTMLElement[] {
  return [
    h("h3", {}, info.name),
    h("p", { class: "muted" }, `${info.family}${info.context === null ? "" : `, ${plural(info.context, "position")} of context`}. ${info.fit_words}`),
    h("ul", { class: "parts" }, ...info.parts.map((part) =>
      h("li", { class: `part ${part.part}` },
        h("span", { class: "part-dot", "aria-hidden": "true" }),
        h("div", {},
          h("strong", {}, NAMES[part.part]), h("span", { class: "muted" }, part.what),
          h("span", { class: "part-place" }, [part.device, part.dtype, part.bytes ? megabytes(part.bytes) : ""].filter(Boolean).join(" · ")))))),
  ];
}
