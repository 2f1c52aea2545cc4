// Where a question is written: text with the pictures standing in it, each movable by mouse, touch and keyboard.

import { announce, h } from "./dom";
import type { Store } from "./store";
import type { Picture, Piece } from "./types";

const FINGERS = matchMedia("(pointer: coarse) and (hover: none)"); // where Enter makes a new line, and the button sends

const LONG = 4000; // characters; longer texts are not put in by the browser's own editing

export class Composer {
  readonly field: HTMLDivElement;
  /** Whether text of the field is being dragged: the browser moves that best. */
  movesText = false;
  private dragged: HTMLElement | null = null;

  constructor(
    private readonly store: Store,
    private readonly on: {
      change: () => void;
      send: () => void;
      up: () => void;
      files: (files: File[]) => void;
      show: (picture: Picture) => void;
      takenAway: (undo: () => void) => void;
    },
  ) {
    this.field = h("div", {
      class: "field",
      contentEditable: "true",
      role: "textbox",
      "aria-multiline": "true",
      "aria-label": "Your question. Pictures stand in the text; move one with Alt and the arrow keys.",
      "data-placeholder": "Ask about a picture…",
      spellcheck: true,
      dir: "auto",
      enterKeyHint: FINGERS.matches ? "enter" : "send",
      onInput: () => this.changed(),
      onKeydown: (event: KeyboardEvent) => this.key(event),
      onPaste: (event: ClipboardEvent) => this.paste(event),
      onDragstart: (event: DragEvent) => this.dragStart(event),
      onDragend: () => this.dragEnd(),
      onDrop: (event: DragEvent) => this.drop(event),
    });
    this.changed(false);
  }

  /** What is written, text and pictures in order. */
  get pieces(): Piece[] {
    const found: Piece[] = [];
    const text = (words: string): void => {
      const last = found.at(-1);
      if (last && "text" in last) last.text += words;
      else if (words) found.push({ text: words });
    };
    const walk = (node: Node, first: boolean): void => {
      if (node instanceof Text) return text(node.data.replaceAll("\u00a0", " ").replaceAll("\u200b", ""));
      if (!(node instanceof HTMLElement)) return;
      const picture = node.dataset.picture;
      if (picture) found.push({ picture });
      else if (node.tagName === "BR") text("\n");
      else {
        if (!first && (node.tagName === "DIV" || node.tagName === "P")) text("\n");
        node.childNodes.forEach((child, at) => walk(child, at === 0 && first));
      }
    };
    this.field.childNodes.forEach((child, at) => walk(child, at === 0));
    const last = found.at(-1);
    if (last && "text" in last) last.text = last.text.replace(/\n$/, ""); // the line that browsers keep open
    return found.filter((piece) => "picture" in piece || piece.text);
  }

  /** What is written from now on; nobody is told. */
  set pieces(pieces: readonly Piece[]) {
    this.field.replaceChildren(
      ...pieces.map((piece) => ("text" in piece ? document.createTextNode(piece.text) : this.chip(piece.picture))),
    );
    this.changed(false);
  }

  get empty(): boolean {
    return this.pieces.every((piece) => "text" in piece && !piece.text.trim());
  }

  /** Draws the pictures in it anew: one of them changed. */
  redraw(): void {
    for (const chip of this.field.querySelectorAll<HTMLElement>("[data-picture]")) chip.replaceWith(this.chip(chip.dataset.picture!));
    this.changed();
  }

  focus(): void {
    this.field.focus();
    const range = document.createRange();
    range.selectNodeContents(this.field);
    range.collapse(false);
    this.select(range);
  }

  /** Puts a picture where the caret is, or at the end. */
  insert(picture: Picture): void {
    const chip = this.chip(picture.id);
    const caret = this.caret();
    if (caret) {
      caret.deleteContents();
      caret.insertNode(chip);
    } else this.field.append(chip);
    const after = document.createRange();
    after.setStartAfter(chip);
    this.select(after);
    this.changed();
    announce(`${picture.name} added`);
  }

  /** Takes a picture away; that can be undone. */
  private takeAway(chip: HTMLElement): void {
    const place = document.createRange();
    place.setStartBefore(chip);
    place.collapse(true);
    chip.remove();
    this.changed();
    this.focus();
    this.on.takenAway(() => {
      if (this.field.contains(place.startContainer)) place.insertNode(chip);
      else this.field.append(chip);
      this.changed();
      chip.focus();
    });
  }

  private chip(id: string): HTMLElement {
    const picture = this.store.picture(id);
    const name = picture?.name ?? "a picture that is missing in this browser";
    const chip = h(
      "span",
      {
        class: "chip",
        contentEditable: "false",
        draggable: true,
        tabIndex: 0,
        role: "img",
        "aria-label": `${name}. Alt and arrows move it, Delete takes it away, Enter shows what the model sees.`,
        "data-picture": id,
        title: picture?.note ? `${name}: ${picture.note}` : name,
        onDblclick: () => picture && this.on.show(picture),
        onKeydown: (event: KeyboardEvent) => this.chipKey(event, chip, picture),
      },
      picture ? h("img", { src: this.store.url(id), alt: "", draggable: false }) : h("span", { class: "chip-missing" }, "missing"),
      h("button", {
        type: "button",
        class: "chip-remove",
        tabIndex: -1,
        "aria-label": `Take ${name} away`,
        title: "Take away",
        onClick: () => this.takeAway(chip),
      }, "×"),
    );
    return chip;
  }

  private chipKey(event: KeyboardEvent, chip: HTMLElement, picture: Picture | undefined): void {
    event.stopPropagation();
    if (event.key === "Delete" || event.key === "Backspace") {
      event.preventDefault();
      this.takeAway(chip);
    } else if (event.key === "Enter" && picture) {
      event.preventDefault();
      this.on.show(picture);
    } else if (event.altKey && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
      event.preventDefault();
      this.step(chip, event.key === "ArrowRight");
      chip.focus();
      this.changed();
      announce(this.neighbours(chip));
    } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      event.preventDefault();
      const range = document.createRange();
      if (event.key === "ArrowRight") range.setStartAfter(chip);
      else range.setStartBefore(chip);
      this.field.focus();
      this.select(range);
    }
  }

  /** Moves a picture by one word, or over its neighbour. */
  private step(chip: HTMLElement, forward: boolean): void {
    this.field.normalize();
    const beside = forward ? chip.nextSibling : chip.previousSibling;
    if (!beside) return;
    if (!(beside instanceof Text) || !beside.data) {
      if (forward) beside.after(chip);
      else beside.before(chip);
      return;
    }
    const words = forward ? /^\s*\S+\s?/.exec(beside.data) : /\s?\S+\s*$/.exec(beside.data);
    const length = words?.[0].length ?? beside.length;
    if (forward) {
      beside.splitText(length);
      beside.after(chip);
    } else {
      beside.splitText(beside.length - length);
      beside.after(chip);
    }
    this.field.normalize();
  }

  private neighbours(chip: HTMLElement): string {
    const before = chip.previousSibling?.textContent?.trim().split(/\s+/).at(-1);
    const after = chip.nextSibling?.textContent?.trim().split(/\s+/)[0];
    return `Picture after ${before || "the beginning"}, before ${after || "the end"}`;
  }

  private key(event: KeyboardEvent): void {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey && (!FINGERS.matches || event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.on.send();
    } else if (event.key === "ArrowUp" && this.empty) {
      event.preventDefault();
      this.on.up();
    }
  }

  /** Takes what was pasted, in the field or anywhere on the page. */
  paste(event: ClipboardEvent): void {
    event.preventDefault();
    const files = [...(event.clipboardData?.files ?? [])];
    const words = event.clipboardData?.getData("text/plain") ?? "";
    const written = event.clipboardData?.getData("text/html");
    // a word processor gives its text as a picture, too; a file manager gives a file's name as text, but not written out
    if (files.length && !(words.trim() && written)) return this.on.files(files);
    // plain text alone: what else a page put on the clipboard has no place in a question
    this.write(words);
  }

  /** Writes text where the caret is, as if it were typed. */
  write(words: string): void {
    if (words.length < LONG) return void document.execCommand("insertText", false, words);
    // the browser would take minutes for some thousand lines
    const text = document.createTextNode(words.replaceAll(/\r\n?/g, "\n"));
    const caret = this.caret();
    if (caret) {
      caret.deleteContents();
      caret.insertNode(text);
    } else this.field.append(text);
    // behind a line break at the very end browsers put no caret
    if (!text.nextSibling?.textContent) text.data = text.data.replace(/\n+$/, "");
    const after = document.createRange();
    after.setStart(text, text.length);
    this.select(after);
    this.changed();
  }

  private dragStart(event: DragEvent): void {
    const from = event.target as Node; // of selected text, the text itself
    const chip = (from instanceof Element ? from : from.parentElement)?.closest<HTMLElement>("[data-picture]");
    // the browser would copy a selected picture without what it can do
    this.movesText = !chip && !this.caret()?.cloneContents().querySelector("[data-picture]");
    if (this.movesText) event.dataTransfer?.clearData("text/html"); // the words alone: styles are forbidden here
    if (!chip || !event.dataTransfer) return;
    this.dragged = chip;
    event.dataTransfer.effectAllowed = "move";
    event.dataTransfer.setData("text/plain", "");
    chip.classList.add("dragged");
  }

  private dragEnd(): void {
    this.dragged?.classList.remove("dragged");
    this.dragged = null;
    this.movesText = false;
  }

  private drop(event: DragEvent): void {
    if (this.movesText) {
      this.movesText = false; // the end of the drag may be told to a text that is gone
      return event.stopPropagation();
    }
    const range = caretAt(event.clientX, event.clientY);
    if (!this.dragged) {
      if (range && this.field.contains(range.startContainer)) this.select(range);
      return; // what it is is the page's affair, which takes it anywhere
    }
    event.preventDefault();
    event.stopPropagation();
    if (range && this.field.contains(range.startContainer) && !this.dragged.contains(range.startContainer)) {
      range.insertNode(this.dragged);
      this.field.normalize();
    }
    this.dragEnd();
    this.changed();
  }

  private caret(): Range | null {
    const selection = getSelection();
    if (!selection?.rangeCount) return null;
    const range = selection.getRangeAt(0);
    return this.field.contains(range.startContainer) ? range : null;
  }

  private select(range: Range): void {
    const selection = getSelection();
    selection?.removeAllRanges();
    selection?.addRange(range);
  }

  private changed(tell = true): void {
    const pieces = this.pieces;
    this.field.classList.toggle("is-empty", !pieces.length);
    // browsers leave a line break in an emptied field, which would hide the hint; a field that is typed in is left alone
    if (!pieces.length && this.field.childNodes.length && !this.field.textContent) this.field.replaceChildren();
    if (tell) this.on.change();
  }
}

function caretAt(x: number, y: number): Range | null {
  const point = (document as Document & { caretPositionFromPoint?(x: number, y: number): CaretPosition | null })
    .caretPositionFromPoint?.(x, y);
  if (!point) return document.caretRangeFromPoint?.(x, y) ?? null;
  const range = document.createRange();
  range.setStart(point.offsetNode, point.offset);
  return range;
}
