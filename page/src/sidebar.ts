// The conversations that this browser keeps: by day, to search, open, rename, delete, write to a file and read from one.

import { byDay } from "./days";
import { h, icon, iconButton, later, logo } from "./dom";
import { keepingFocus } from "./popover";
import type { Summary } from "./types";

export interface SidebarActions {
  fresh: () => void;
  open: (id: string) => void;
  rename: (id: string, title: string) => void;
  remove: (id: string) => void;
  search: (words: string) => Promise<Set<string>>;
  save: () => void;
  read: (file: File) => void;
  close: () => void;
}

/** What is said of a chat beside its title. */
export type Mark = "answering" | "answered";

export class Sidebar {
  readonly element: HTMLElement;
  private readonly list = h("div", { class: "talks" });
  private readonly search: HTMLInputElement;
  private conversations: readonly Summary[] = [];
  private current = "";
  private marks: ReadonlyMap<string, Mark> = new Map();
  private found: Set<string> | null = null;

  constructor(private readonly on: SidebarActions) {
    const file = h("input", {
      type: "file",
      accept: "application/json,.json",
      hidden: true,
      onChange: () => {
        const chosen = file.files?.[0];
        if (chosen) on.read(chosen);
        file.value = "";
      },
    });
    this.search = h("input", { type: "search", class: "talk-search", placeholder: "Search the chats", "aria-label": "Search the chats", onInput: later(150, () => void this.searched()) });
    this.element = h("nav", { class: "panel sidebar", id: "talks", "aria-label": "Chats" },
      h("header", { class: "brand" }, logo(), h("span", { class: "wordmark" }, "Trifocal"), iconButton("close", "Close the list of chats", on.close, { class: "only-small" })),
      h("button", { type: "button", class: "new-talk", onClick: on.fresh }, icon("plus"), "New chat"),
      h("label", { class: "search-box" }, icon("search"), this.search),
      this.list,
      h("footer", {},
        h("button", { type: "button", class: "text-button", onClick: on.save }, icon("down"), "Export all"),
        h("button", { type: "button", class: "text-button", onClick: () => file.click() }, icon("up"), "Import"),
        file));
  }

  focusSearch(): void {
    this.search.focus();
    this.search.select();
  }

  draw(conversations: readonly Summary[], current: string, marks: ReadonlyMap<string, Mark>): void {
    Object.assign(this, { conversations, current, marks });
    if (this.list.querySelector(".talk-rename")) return; // somebody is writing a name: it is drawn when that ends
    keepingFocus(() => this.drawList());
  }

  private async searched(): Promise<void> {
    const words = this.search.value.trim();
    const found = words ? await this.on.search(words) : null;
    if (words !== this.search.value.trim()) return;
    this.found = found;
    this.drawList();
  }

  private drawList(): void {
    const shown = this.conversations.filter((each) => !this.found || this.found.has(each.id));
    this.list.replaceChildren(...byDay(shown).map(([day, chats]) =>
      h("section", { "aria-label": day }, h("h2", { class: "talk-day" }, day), h("ul", {}, ...chats.map((each) => this.row(each))))));
    if (this.found && !shown.length) this.list.append(h("p", { class: "muted talk-none" }, "No chat has these words."));
  }

  private row(each: Summary): HTMLElement {
    const current = each.id === this.current;
    const title = each.title || "New chat";
    const mark = this.marks.get(each.id);
    const words = mark === "answering" ? ", an answer is being written" : mark === "answered" ? ", answered" : "";
    const open = h("button", { type: "button", class: "talk-open", dir: "auto", title, "aria-current": current ? "true" : undefined, onClick: () => this.on.open(each.id) }, title);
    return h("li", { class: current ? "talk current" : "talk" }, open,
      mark && h("span", { class: `talk-mark ${mark}`, role: "img", "aria-label": words.slice(2), title: words.slice(2) }),
      iconButton("edit", `Rename ${title}`, () => this.rename(each, open)),
      iconButton("bin", `Delete ${title}`, () => this.on.remove(each.id)));
  }

  private rename(conversation: Summary, label: HTMLElement): void {
    const input = h("input", { type: "text", class: "talk-rename", value: conversation.title, "aria-label": "Name of the chat", maxLength: 120 });
    let ended = false;
    const end = (keep: boolean): void => {
      if (ended) return;
      ended = true;
      input.replaceWith(label);
      this.drawList();
      if (keep && input.value.trim()) this.on.rename(conversation.id, input.value.trim());
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") end(false);
      event.stopPropagation();
    });
    input.addEventListener("blur", () => end(true));
    label.replaceWith(input);
    input.select();
  }
}
