// The conversations that this browser keeps: by day, to search, open, rename, delete, write to a file and read from one.

import { byDay } from "./days";
import { arrange, h, icon, iconButton, later, logo } from "./dom";
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

const MARKS: Record<Mark, string> = { answering: "an answer is being written", answered: "answered" };

export class Sidebar {
  readonly element: HTMLElement;
  private readonly list = h("div", { class: "talks" });
  private readonly search: HTMLInputElement;
  private conversations: readonly Summary[] = [];
  private current = "";
  private marks: ReadonlyMap<string, Mark> = new Map();
  private found: Set<string> | null = null;
  private readonly rows = new Map<string, Row>();
  private readonly days = new Map<string, HTMLElement>();
  private readonly none = h("p", { class: "muted talk-none", hidden: true }, "No chat has these words.");

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
    const before = this.said;
    Object.assign(this, { conversations, current, marks });
    if (this.found && this.said !== before) void this.searched(); // what was written since may have the words
    if (this.list.querySelector(".talk-rename")) return; // somebody is writing a name: it is drawn when that ends
    keepingFocus(() => this.drawList());
  }

  /** Changes whenever a chat's words may have. */
  private get said(): string {
    return JSON.stringify(this.conversations.map((each) => [each.id, each.title, each.updated]));
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
    const days = byDay(shown).map(([day, chats]) => {
      const section = this.days.get(day) ?? h("section", { "aria-label": day }, h("h2", { class: "talk-day" }, day), h("ul", {}));
      this.days.set(day, section);
      arrange(section.querySelector("ul")!, chats.map((each) => this.row(each).element));
      return section;
    });
    this.none.hidden = !this.found || shown.length > 0;
    arrange(this.list, [...days, this.none]);
    const kept = new Set(this.conversations.map((each) => each.id));
    for (const id of [...this.rows.keys()]) if (!kept.has(id)) this.rows.delete(id);
  }

  private row(each: Summary): Row {
    const row = this.rows.get(each.id) ?? new Row(each.id, this.on, (row) => this.rename(row));
    this.rows.set(each.id, row);
    row.update(each.title, each.id === this.current, this.marks.get(each.id));
    return row;
  }

  private rename({ id, title, open }: Row): void {
    const input = h("input", { type: "text", class: "talk-rename", value: title, "aria-label": "Name of the chat", maxLength: 120 });
    let ended = false;
    const end = (keep: boolean): void => {
      if (ended) return;
      ended = true;
      input.replaceWith(open);
      this.drawList();
      if (keep && input.value.trim()) this.on.rename(id, input.value.trim());
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") end(false);
      event.stopPropagation();
    });
    input.addEventListener("blur", () => end(true));
    open.replaceWith(input);
    input.select();
  }
}

/** A chat in the list. It is changed, never made anew: a press on it must not be lost because an answer grew meanwhile. */
class Row {
  readonly element: HTMLElement;
  readonly open: HTMLButtonElement;
  private readonly edit: HTMLElement;
  private readonly bin: HTMLElement;
  private readonly mark = h("span", { role: "img", hidden: true });
  title = "";

  constructor(readonly id: string, on: SidebarActions, rename: (row: Row) => void) {
    this.open = h("button", { type: "button", class: "talk-open", dir: "auto", onClick: () => on.open(id) });
    this.edit = iconButton("edit", "Rename", () => rename(this));
    this.bin = iconButton("bin", "Delete", () => on.remove(id));
    this.element = h("li", { class: "talk" }, this.open, this.mark, this.edit, this.bin);
  }

  update(title: string, current: boolean, mark: Mark | undefined): void {
    this.title = title;
    const shown = title || "New chat";
    if (this.open.textContent !== shown) {
      this.open.textContent = this.open.title = shown;
      this.edit.ariaLabel = this.edit.title = `Rename ${shown}`;
      this.bin.ariaLabel = this.bin.title = `Delete ${shown}`;
    }
    this.element.classList.toggle("current", current);
    this.open.ariaCurrent = current ? "true" : null;
    this.mark.className = mark ? `talk-mark ${mark}` : "";
    this.mark.hidden = !mark;
    this.mark.ariaLabel = this.mark.title = mark ? MARKS[mark] : "";
  }
}
