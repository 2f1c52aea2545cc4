// One chat as a Markdown file that any program shows: questions, pictures in it, answers.

import { today } from "./days";
import type { Store } from "./store";
import type { Conversation, UserTurn } from "./types";
import { answerOf, picturesIn } from "./types";
import { whole } from "./wire";

export async function asMarkdown(conversation: Conversation, model: string, store: Store): Promise<Blob> {
  const ids = [...new Set(picturesIn(conversation))];
  await store.fetch(ids);
  const parts = [`# ${plain(conversation.title) || "Chat"}`, `${plain(model)}, ${today(new Date(conversation.updated))}`];
  for (const turn of conversation.turns) {
    if (turn.role === "user") parts.push("## Question", questionOf(turn, ids, store));
    else if (answerOf(turn).text) parts.push("## Answer", closed(answerOf(turn).text));
  }
  const links = await Promise.all(ids.map(async (id, at) => {
    const picture = store.picture(id);
    return picture ? `[picture-${at + 1}]: ${await whole(picture)}` : "";
  }));
  return new Blob([[...parts, links.filter(Boolean).join("\n")].join("\n\n"), "\n"], { type: "text/markdown" });
}

function questionOf(turn: UserTurn, ids: readonly string[], store: Store): string {
  return turn.pieces.map((piece) => {
    if ("text" in piece) return piece.text.split("\n").map(plain).join("\\\n");
    const name = plain(store.picture(piece.picture)?.name ?? "missing picture");
    return `![${name}][picture-${ids.indexOf(piece.picture) + 1}]`;
  }).join("");
}

/** A line that is read as it was written, not as Markdown or HTML. */
function plain(line: string): string {
  return line.replace(/\s+/g, " ").replace(/[\\`*_[\]<>&|~$]/g, "\\$&").replace(/^( *)([#+\-=]|\d+(?=[.)]))/, (_, space: string, mark: string) => (/\d/.test(mark) ? `${space}${mark}\\` : `${space}\\${mark}`));
}

/** An answer that ends what it began: code that was cut off would take the rest of the chat in. */
function closed(text: string): string {
  let open: string | null = null;
  for (const line of text.split("\n")) {
    const mark: string | undefined = /^ {0,3}(`{3,}|~{3,})/.exec(line)?.[1];
    if (!mark) continue;
    if (open === null) open = mark;
    else if (mark.startsWith(open) && !line.trim().slice(mark.length)) open = null;
  }
  return open === null ? text : `${text}\n${open}`;
}

/** A file's name out of a title. */
export function fileName(title: string, ending: string): string {
  const plain = title.replace(/[^\p{L}\p{N} _-]+/gu, "").trim().slice(0, 60).trim();
  return `${plain || "chat"}${ending}`;
}
