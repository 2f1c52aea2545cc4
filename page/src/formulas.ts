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
  const to = closing(state.src, from, pair.close);
  if (to < 0 || to >= state.posMax || (pair.open === "$" && !isFormula(state.src, from, to))) return false;
  if (!silent) {
    const token = state.push("formula", "math", 0);
    token.content = state.src.slice(from, to).trim();
    token.info = pair.display ? "display" : "";
  }
  state.pos = to + pair.close.length;
  return true;
};

function closing(text: string, from: number, close: string): number {
  for (let at = text.indexOf(close, from); at >= 0; at = text.indexOf(close, at + 1)) {
    if (at === from) return -1;
    if (close !== "$" || text[at - 1] !== "\\") return at;
  }
  return -1;
}

/** Whether what stands between two dollars is a formula and not two prices. */
function isFormula(text: string, from: number, to: number): boolean {
  return !/\s/.test(text[from]!) && !/\s/.test(text[to - 1]!) && !/\d/.test(text[to + 1] ?? "") && !text.slice(from, to).includes("\n\n");
}

const asBlock: BlockRule = (state, start, end, silent) => {
  const line = (at: number): string => state.src.slice(state.bMarks[at]! + state.tShift[at]!, state.eMarks[at]);
  const first = line(start).trimEnd();
  const pair = PAIRS.find(({ open, display }) => display && first.startsWith(open));
  if (!pair) return false;
  const lines = [first.slice(pair.open.length)];
  let at = start;
  while (!lines.at(-1)!.trimEnd().endsWith(pair.close)) {
    if (lines.at(-1)!.includes(pair.close) || ++at >= end) return false; // text goes on behind it, or it is not closed yet
    lines.push(line(at));
  }
  if (silent) return true;
  const token = state.push("formula", "math", 0);
  token.content = lines.join("\n").trimEnd().slice(0, -pair.close.length).trim();
  token.info = "display";
  token.map = [start, at + 1];
  token.block = true;
  state.line = at + 1;
  return true;
};
