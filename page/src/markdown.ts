// Answers as Markdown, safely: elements are made from tokens one by one, so no HTML of the model's is ever read, and
// nothing that would be loaded from anywhere. What was drawn and is finished is not looked at again.

import MarkdownIt from "markdown-it";
import { copyButton } from "./copying";
import { h } from "./dom";
import { formulas } from "./formulas";
import { inTurn, nextFrame } from "./frames";
import { branch, patch } from "./tree";
import type { Branch, Leaf } from "./tree";

type Token = ReturnType<MarkdownIt["parse"]>[number];

const markdown = new MarkdownIt({ html: false, linkify: false, breaks: true });
markdown.use(formulas);

const SLICE = 1200; // characters that are drawn at once: a burst is spread over frames
const COLOURED = 12_000; // longer code stays plain

/** An element that shows a text as Markdown, and follows as the text grows. */
export class Written {
  readonly element = h("div", { class: "text", dir: "auto" });
  private text = "";
  private shown = 0;
  private ended = false;
  private again = false; // the whole text is looked at once more: a link may be explained below the place where it stands
  private frame = 0;
  private settled = 0; // where the last block begins, which may still change
  private blocks: Leaf[] = [];
  private drawn: Leaf[] = [];
  private explained: { references?: object } = {}; // the links that the finished blocks explain
  private inlines = new Map<string, readonly Leaf[]>();

  /** Shows this text; `ended` says that nothing will be added to it. */
  set(given: string, ended: boolean): void {
    const text = given.includes("\r") || given.includes("\0") ? given.replaceAll(/\r\n?/g, "\n").replaceAll("\0", "\ufffd") : given;
    if (text === this.text && ended === this.ended) return;
    if (!text.startsWith(this.text)) this.forget();
    this.again &&= ended;
    this.text = text;
    this.ended = ended;
    if (!this.frame) this.draw();
  }

  private readonly draw = (): void => {
    this.frame = 0;
    this.shown = Math.min(this.text.length, this.shown + SLICE);
    if (this.shown === this.text.length && this.ended && !this.again && this.text.includes("]:")) this.lookAgain();
    const whole = this.shown === this.text.length;
    this.show(this.text.slice(this.settled, this.shown), whole && this.ended);
    this.element.setAttribute("aria-busy", String(!whole));
    if (!whole) this.frame = nextFrame(this.draw);
  };

  private show(source: string, last: boolean): void {
    const tokens: Token[] = [];
    const environment = { references: { ...this.explained.references } }; // one that is half written is not kept
    markdown.block.parse(source, markdown, environment, tokens);
    const starts = tokens.flatMap((token, at) => (token.level === 0 && token.nesting >= 0 && token.map ? [at] : []));
    const final = starts.at(-1);
    const inlines = new Map<string, readonly Leaf[]>();
    const made = this.leaves(tokens, environment, inlines, last);
    this.inlines = inlines;
    this.place(made, last);
    if (!last && final !== undefined && starts.length > 1) {
      const start = lineStart(source, tokens[final]!.map![0]);
      if (source.includes("]:")) markdown.block.parse(source.slice(0, start), markdown, this.explained, []);
      this.blocks.push(...made.slice(0, -1));
      this.settled += start;
    }
  }

  private place(made: readonly Leaf[], last: boolean): void {
    const all = [...this.blocks, ...made];
    if (this.again && !last) all.splice(-1, 1, ...this.drawn.slice(all.length - 1)); // what was not looked at again yet stays
    patch(this.element, this.drawn, all);
    this.drawn = all;
  }

  private lookAgain(): void {
    this.unsettle();
    this.again = true;
    this.shown = Math.min(this.text.length, SLICE);
    markdown.block.parse(this.text, markdown, this.explained, []);
  }

  private unsettle(): void {
    Object.assign(this, { settled: 0, blocks: [], explained: {}, inlines: new Map() });
  }

  private forget(): void {
    cancelAnimationFrame(this.frame);
    Object.assign(this, { frame: 0, shown: 0, again: false });
    this.unsettle();
  }

  private leaves(tokens: readonly Token[], environment: object, inlines: Map<string, readonly Leaf[]>, last: boolean): Leaf[] {
    const root: Leaf[] = [];
    const open: Leaf[][] = [root];
    for (const [at, token] of tokens.entries()) {
      const into = open.at(-1)!;
      if (token.hidden) continue; // the paragraphs of a tight list
      if (token.nesting === 1) {
        const made = branch(token.tag as Branch["tag"], attributesOf(token), []);
        into.push(token.type === "table_open" ? branch("div", { class: "wide", tabindex: "0" }, [made]) : made);
        open.push(made.children as Leaf[]);
      } else if (token.nesting === -1) open.pop();
      else if (token.type === "inline") into.push(...this.inline(token.content, environment, inlines));
      else into.push(block(token, !last && at === tokens.length - 1));
    }
    return root;
  }

  private inline(content: string, environment: object, inlines: Map<string, readonly Leaf[]>): readonly Leaf[] {
    const made = this.inlines.get(content) ?? inlines.get(content) ?? inlineLeaves(content, environment);
    inlines.set(content, made);
    return made;
  }
}

function lineStart(text: string, line: number): number {
  let at = 0;
  for (let count = 0; count < line; count++) at = text.indexOf("\n", at) + 1;
  return at;
}

function block(token: Token, open: boolean): Leaf {
  if (token.type === "formula") return formula(token.content, true);
  if (token.type === "fence" || token.type === "code_block") return code(token.content, token.info.trim().split(/\s+/)[0] ?? "", open);
  return branch(token.tag as Branch["tag"]);
}

function inlineLeaves(content: string, environment: object): Leaf[] {
  const tokens: Token[] = [];
  markdown.inline.parse(content, markdown, environment, tokens);
  const root: Leaf[] = [];
  const open: Leaf[][] = [root];
  const text = (words: string): void => {
    const into = open.at(-1)!;
    const before = into.at(-1);
    if (typeof before === "string") into[into.length - 1] = before + words;
    else if (words) into.push(words);
  };
  for (const token of tokens) {
    if (token.nesting === 1) {
      const made = branch(token.tag as Branch["tag"], attributesOf(token), []);
      open.at(-1)!.push(made);
      open.push(made.children as Leaf[]);
    } else if (token.nesting === -1) open.pop();
    else if (token.type === "code_inline") open.at(-1)!.push(branch("code", {}, [token.content]));
    else if (token.type === "formula") open.at(-1)!.push(formula(token.content, token.info === "display"));
    else if (token.type === "hardbreak" || token.type === "softbreak") open.at(-1)!.push(branch("br"));
    // a picture's address is shown as words: loading it would tell its owner that it was read
    else if (token.type === "image") text(`![${token.content}](${token.attrGet("src") ?? ""})`);
    else text(token.content);
  }
  return root;
}

function attributesOf(token: Token): Record<string, string> {
  const start = token.attrGet("start");
  if (token.tag === "ol" && start !== null) return { start: String(start) };
  const align = /text-align:(\w+)/.exec(String(token.attrGet("style") ?? ""))?.[1];
  if (align) return { class: `to-${align}` };
  const href = String(token.attrGet("href") ?? "");
  if (token.tag === "a" && /^(?:https?|mailto):/i.test(href)) return { href, target: "_blank", rel: "noopener noreferrer nofollow" };
  return {};
}

/** A block of code with its language and a button; in colours once it is whole. */
function code(content: string, language: string, open: boolean): Leaf {
  const text = content.replace(/\n$/, "");
  const head: Leaf = open
    ? branch("span", { class: "code-language" }, [language])
    : { key: `head ${language} ${text}`, make: () => h("div", { class: "code-head" }, h("span", { class: "code-language" }, language), copyButton("Copy the code", () => text)) };
  const body: Leaf = open
    ? branch("code", {}, [text])
    : { key: `code ${language} ${text}`, make: () => coloured(text, language) };
  return branch("div", { class: "code" }, [head, branch("pre", { tabindex: "0", dir: "ltr" }, [body])]);
}

function coloured(text: string, language: string): HTMLElement {
  const element = h("code", {}, text);
  if (language && text.length <= COLOURED) {
    busy(element, import("./colours").then(({ colour }) => inTurn(() => colour(element, text, language.toLowerCase())))); // plain is good enough
  }
  return element;
}

function formula(tex: string, display: boolean): Leaf {
  return {
    key: `${display ? "display" : "inline"} ${tex}`,
    make: () => {
      const element = h(display ? "div" : "span", { class: display ? "formula display" : "formula" }, tex);
      if (display) element.tabIndex = 0; // wide ones scroll: keys must reach them
      busy(element, import("./math").then(({ drawFormula }) => inTurn(() => drawFormula(element, tex, display))).catch(() => {
        element.textContent = tex; // shown as it was written
      }));
      return element;
    },
  };
}

/** Says of an element that it is still being drawn, until that has ended in whatever way. */
function busy(element: HTMLElement, drawing: Promise<void>): void {
  element.setAttribute("aria-busy", "true");
  const ended = (): void => element.removeAttribute("aria-busy");
  drawing.then(ended, ended);
}
