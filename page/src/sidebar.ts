// The conversations that this browser keeps: choose, rename, delete, write to a file and read from one.

import { h, icon, iconButton, logo } from "./dom";
import type { Conversation } from "./types";

export interface SidebarActions {
  fresh: () => void;
  open: (id: string) => void;
  rename: (id: string, title: string) => void;
  remove: (id: string) => void;
  save: () => void;
  read: (file: File) => void;
  close: () => void;
}

export class Sidebar {
  readonly element: HTMLElement;
  private readonly list = h("ul", { class: "talks" });

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
    this.element = h("nav", { class: "panel sidebar", id: "talks", "aria-label": "Chats" },
      h("header", { class: "brand" }, logo(), h("span", { class: "wordmark" }, "Trifocal"), iconButton("close", "Close the list of chats", on.close, { class: "only-small" })),
      h("button", { type: "button", class: "new-talk", onClick: on.fresh }, icon("plus"), "New chat"),
      this.list,
      h("footer", {},
        h("button", { type: "button", class: "text-button", onClick: on.save }, icon("down"), "Export all"),
        h("button", { type: "button", class: "text-button", onClick: () => file.click() }, icon("up"), "Import"),
        file));
  }

  draw(conversations: readonly Conversation[], current: string): void {
    this.list.replaceChildren(
      ...conversations.map((each) => {
        const open = h("button", { type: "button", class: "talk-open", "aria-current": each.id === current ? "true" : undefined, onClick: () => this.on.open(each.id) }, each.title || "New chat");
        const row = h("li", { class: each.id === current ? "talk current" : "talk" }, open,
          iconButton("edit", `Rename ${each.title || "this chat"}`, () => this.rename(each, open)),
          iconButton("bin", `Delete ${each.title || "this chat"}`, () => this.on.remove(each.id)));
        return row;
      }),
    );
  }

  private rename(conversation: Conversation, label: HTMLElement): void {
    const input = h("input", { type: "text", class: "talk-rename", value: conversation.title, "aria-label": "Name of the chat", maxLength: 120 });
    let ended = false;
    const end = (keep: boolean): void => {
      if (ended) return;
      ended = true;
      input.replaceWith(label);
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
