// One chat as a Markdown file that any program shows: questions, pictures in it, answers.

import type { Store } from "./store";
import type { Conversation, UserTurn } from "./types";
import { answerOf, picturesOf } from "./types";
import { whole } from "./wire";

export async function asMarkdown(conversation: Conversation, model: string, store: Store): Promise<Blob> {
  const ids = [...new Set(conversation.turns.flatMap((turn) => (turn.role === "user" ? picturesOf(turn.pieces) : [])))];
  await store.fetch(ids);
  const parts = [`# ${conversation.title || "Chat"}`, `${model}, ${new Date(conversation.updated).toISOString().slice(0, 10)}`];
  for (const turn of conversation.turns) {
    if (turn.role === "user") parts.push("## Question", questionOf(turn, ids, store));
    else if (answerOf(turn).text) parts.push("## Answer", answerOf(turn).text);
  }
  const links = await Promise.all(ids.map(async (id, at) => {
    const picture = store.picture(id);
    return picture ? `[picture-${at + 1}]: ${await whole(picture)}` : "";
  }));
  return new Blob([[...parts, links.filter(Boolean).join("\n")].join("\n\n"), "\n"], { type: "text/markdown" });
}

function questionOf(turn: UserTurn, ids: readonly string[], store: Store): string {
  return turn.pieces.map((piece) => {
    if ("text" in piece) return piece.text;
    const name = (store.picture(piece.picture)?.name ?? "missing picture").replace(/[[\]\\\n]/g, " ");
    return `![${name}][picture-${ids.indexOf(piece.picture) + 1}]`;
  }).join("");
}

/** A file's name out of a title. */
export function fileName(title: string, ending: string): string {
  const plain = title.replace(/[^\p{L}\p{N} _-]+/gu, "").trim().slice(0, 60).trim();
  return `${plain || "chat"}${ending}`;
}
