// The page around the conversation: where its parts stand, what is dropped, typed and pasted anywhere, and the keys.

import { read, write } from "./choices";
import type { Composer } from "./composer";
import { cameraDialog, helpDialog } from "./dialogs";
import { h, iconButton } from "./dom";
import { toasts } from "./toast";

export interface FrameParts {
  sidebar: HTMLElement;
  header: HTMLElement;
  banner: HTMLElement;
  notices: HTMLElement;
  composer: Composer;
  send: HTMLElement;
  meter: HTMLElement;
  toEnd: HTMLElement;
  settings: HTMLElement;
}

export interface FrameActions {
  add: (files: File[]) => void;
  fresh: () => void;
  search: () => void;
  /** Escape, where no panel took it; whether something was done. */
  escape: () => boolean;
}

type Panel = "talks-open" | "settings-open";

export class Frame {
  readonly scroll = h("main", { class: "scroll", id: "main", tabIndex: -1 });
  readonly content = h("div", { class: "content" });
  readonly foot: HTMLElement;
  private readonly root = h("div", { class: "app" });

  constructor(
    private readonly parts: FrameParts,
    private readonly on: FrameActions,
  ) {
    const { composer } = parts;
    const files = h("input", {
      type: "file",
      accept: "image/*,.heic,.heif,.avif",
      multiple: true,
      hidden: true,
      id: "files",
      onChange: () => {
        on.add([...(files.files ?? [])]);
        files.value = "";
      },
    });
    const box = h("div", { class: "composer" }, composer.field,
      h("div", { class: "composer-tools" },
        iconButton("picture", "Add pictures", () => files.click()),
        iconButton("camera", "Take a picture with the camera", () => void cameraDialog().then((shot) => shot && on.add([shot]))),
        h("span", { class: "grow" }),
        parts.send));
    this.foot = h("footer", { class: "foot" }, parts.toEnd,
      h("div", { class: "foot-box" }, toasts, parts.notices, box, parts.meter, files));
    // the foot stands in what scrolls, so that both have one width at every size
    this.scroll.append(this.content, this.foot);
    // what is scrolled into view, by a key or by the page, comes to stand above the foot
    new ResizeObserver(() => (this.scroll.style.scrollPaddingBottom = `${this.foot.offsetHeight + 10}px`)).observe(this.foot);
    this.root.append(
      h("a", { class: "skip", href: "#main" }, "To the conversation"),
      parts.sidebar,
      h("div", { class: "stage" }, parts.header, parts.banner, this.scroll),
      parts.settings,
      h("div", { class: "shade", onClick: () => { this.toggle("talks-open", false); this.toggle("settings-open", false); } }),
    );
    this.toggle("settings-open", read("trifocal.panel") === "open" && matchMedia("(min-width: 1100px)").matches);
    this.listen();
  }

  show(): void {
    document.querySelector(".loading")?.remove();
    document.body.append(this.root);
  }

  toggle(name: Panel, on?: boolean): void {
    const open = this.root.classList.toggle(name, on);
    if (name !== "settings-open") return;
    write("trifocal.panel", open ? "open" : null);
    this.root.querySelector("#settings-button")?.setAttribute("aria-expanded", String(open));
  }

  busy(on: boolean): void {
    this.root.classList.toggle("busy", on);
  }

  private listen(): void {
    let depth = 0;
    const files = (event: DragEvent): boolean => [...(event.dataTransfer?.types ?? [])].includes("Files");
    addEventListener("dragenter", (event) => {
      if (files(event)) this.root.classList.toggle("dropping", ++depth > 0);
    });
    addEventListener("dragleave", (event) => {
      if (files(event)) this.root.classList.toggle("dropping", --depth > 0);
    });
    addEventListener("dragover", (event) => (files(event) || !this.isTheBrowsers(event)) && event.preventDefault());
    addEventListener("drop", (event) => {
      depth = 0;
      this.root.classList.remove("dropping");
      if (!files(event) && this.isTheBrowsers(event)) return;
      event.preventDefault();
      const dropped = [...(event.dataTransfer?.files ?? [])];
      const words = event.dataTransfer?.getData("text/plain") ?? "";
      if (dropped.length) return this.on.add(dropped);
      if (!words || event.target instanceof Element && event.target.closest("dialog, .popover")) return;
      const { composer } = this.parts;
      if (!composer.field.contains(event.target as Node)) composer.focus();
      composer.field.focus();
      composer.write(words);
    });
    addEventListener("paste", (event) => {
      if (elsewhere(event.target)) return;
      this.parts.composer.focus();
      this.parts.composer.paste(event);
    });
    addEventListener("keydown", (event) => this.key(event));
  }

  /** Whether the browser knows better what to do with a text that is dragged there. */
  private isTheBrowsers(event: DragEvent): boolean {
    return this.parts.composer.movesText || (event.target instanceof Element && event.target.closest("input, textarea") !== null);
  }

  private key(event: KeyboardEvent): void {
    if (event.defaultPrevented) return;
    const command = event.ctrlKey || event.metaKey;
    const chords: Record<string, () => void> = {
      "/": helpDialog,
      ",": () => this.toggle("settings-open"),
      k: () => {
        this.toggle("talks-open", true);
        this.on.search();
      },
    };
    if (event.key === "Escape") {
      if (!document.querySelector("dialog[open], .popover:popover-open")) this.escape();
    } else if (command && event.shiftKey && event.key.toLowerCase() === "o") {
      event.preventDefault();
      this.on.fresh();
    } else if (command && !event.shiftKey && event.key in chords) {
      event.preventDefault();
      chords[event.key]!();
    } else if (event.key.length === 1 && event.key !== " " && !command && !event.altKey && !elsewhere(event.target)) {
      this.parts.composer.focus(); // the letter goes where the focus is by then
    }
  }

  private escape(): void {
    if (this.root.classList.contains("talks-open")) this.toggle("talks-open", false);
    else if (!this.on.escape()) this.toggle("settings-open", false);
  }
}

/** Whether what is typed there is meant for something else than the question. */
function elsewhere(target: EventTarget | null): boolean {
  return target instanceof Element && target.closest("input, textarea, select, dialog, .popover, [contenteditable]") !== null;
}
