// Formulas in Markdown: `\(…\)`, `\[…\]`, `$…$` and `$$…$$`, found before Markdown takes their backslashes away.

import type MarkdownIt from "markdown-it";

type InlineRule = Parameters<MarkdownIt["inline"]["ruler"]["before"]>[2];
type BlockRule = Parameters<MarkdownIt["block"]["ruler"]["before"]>[2];

const PAIRS: { open: string; close: string; display: boolean }[] = [
  { open: "\\(", close: "\\)", display: false },
  { open: "\\[", close: "\\]", display: true },
  { open: "$$", close: "$$", display: true },
  { open: "$", close: "$", display: false },
];

/** Teaches Markdown formulas: tokens of type `formula`, whose `info` is `display` or empty. */
export function formulas(markdown: MarkdownIt): void {
  markdown.inline.ruler.before("escape", "formula", inText);
  markdown.block.ruler.before("fence", "formula", asBlock, { alt: ["paragraph", "blockquote", "list"] });
}

const inText: InlineRule = (state, silent) => {
  const pair = PAIRS.find(({ open }) => state.src.startsWith(open, state.pos));
  if (!pair) return false;
  const from = state.pos + pair.open.length;
  const to = closing(state, from, pair.close);
  if (to < 0 || to >= state.posMax || (pair.open === "$" && !isFormula(state.src, from, to))) return false;
  if (!silent) {
    const token = state.push("formula", "math", 0);
    token.content = state.src.slice(from, to).trim();
    token.info = pair.display ? "display" : "";
  }
  state.pos = to + pair.close.length;
  return true;
};

function closing(text: { src: string }, from: number, close: string): number {
  for (let at = next(text, close, from); at >= 0; at = next(text, close, at + 1)) {
    if (at === from) return -1;
    if (close !== "$" || text.src[at - 1] !== "\\") return at;
  }
  return -1;
}

/** For each text that is read: what was found last, so that a mark that closes many, or none, is looked for once. */
const found = new WeakMap<object, Map<string, { from: number; at: number }>>();

/** Where a mark stands next in a text; -1 where it does not. */
function next(text: { src: string }, mark: string, from: number): number {
  const known = found.get(text) ?? new Map<string, { from: number; at: number }>();
  found.set(text, known);
  const last = known.get(mark);
  if (last && from >= last.from && (last.at < 0 || from <= last.at)) return last.at;
  const at = text.src.indexOf(mark, from);
  known.set(mark, { from, at });
  return at;
}

/** Whether what stands between two dollars is a formula and not two prices. */
function isFormula(text: string, from: number, to: number): boolean {
  return !/\s/.test(text[from]!) && !/\s/.test(text[to - 1]!) && !/\d/.test(text[to + 1] ?? "") && !text.slice(from, to).includes("\n\n");
}

const asBlock: BlockRule = (state, start, end, silent) => {
  const begin = state.bMarks[start]! + state.tShift[start]!;
  const pair = PAIRS.find(({ open, display }) => display && state.src.startsWith(open, begin));
  if (!pair) return false;
  const to = next(state, pair.close, begin + pair.open.length);
  if (to < 0 || to >= state.eMarks[end - 1]!) return false; // it is not closed yet
  if (/\S/.test(lineFrom(state.src, to + pair.close.length))) return false; // text goes on behind it
  if (silent) return true;
  const lines: string[] = [];
  let after = start;
  do lines.push(state.src.slice(state.bMarks[after]! + state.tShift[after]!, state.eMarks[after]));
  while (state.eMarks[after++]! < to);
  const token = state.push("formula", "math", 0);
  token.content = lines.join("\n").trimEnd().slice(pair.open.length, -pair.close.length).trim();
  token.info = "display";
  token.map = [start, after];
  token.block = true;
  state.line = after;
  return true;
};

function lineFrom(text: string, at: number): string {
  const end = text.indexOf("\n", at);
  return text.slice(at, end < 0 ? text.length : end);
}
