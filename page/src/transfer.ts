// Conversations as a file: JSON with the pictures in it, written and read back.

import type { Store } from "./store";
import type { Conversation, Picture, Turn } from "./types";
import { newId, picturesOf } from "./types";
import { whole } from "./wire";

const FORMAT = "trifocal-chats";

interface File1 {
  format: typeof FORMAT;
  version: 1;
  conversations: Conversation[];
  pictures: Record<string, { name: string; width: number; height: number; data: string }>;
}

export async function exported(conversations: readonly Conversation[], store: Store): Promise<Blob> {
  const pictures: File1["pictures"] = {};
  for (const id of conversations.flatMap(picturesIn)) {
    const picture = store.pictures.get(id);
    if (picture) pictures[id] = { name: picture.name, width: picture.width, height: picture.height, data: await whole(picture) };
  }
  const file: File1 = { format: FORMAT, version: 1, conversations: [...conversations], pictures };
  return new Blob([JSON.stringify(file, null, 1)], { type: "application/json" });
}

/** The conversations of a file, under new ids; their pictures go to the store. */
export async function imported(file: Blob, store: Store): Promise<Conversation[]> {
  const read = JSON.parse(await file.text()) as File1;
  if (read.format !== FORMAT || !Array.isArray(read.conversations)) throw new Error("no chats");
  const renamed = new Map<string, string>();
  for (const [id, each] of Object.entries(read.pictures ?? {})) {
    const [head, body] = String(each.data).split(",", 2);
    const type = /^data:(image\/[\w.+-]+);base64$/.exec(head ?? "")?.[1];
    if (!type || !body) throw new Error("no picture");
    const bytes = Uint8Array.from(atob(body), (letter) => letter.charCodeAt(0));
    const picture: Picture = { id: newId(), name: String(each.name), type, width: Number(each.width), height: Number(each.height), blob: new Blob([bytes], { type }) };
    renamed.set(id, picture.id);
    await store.keep(picture);
  }
  return read.conversations.map((conversation) => ({
    id: newId(),
    title: String(conversation.title ?? ""),
    named: Boolean(conversation.named),
    updated: Number(conversation.updated) || Date.now(),
    draft: { pieces: pieces(conversation.draft?.pieces ?? [], renamed) },
    turns: (conversation.turns ?? []).map((turn): Turn =>
      turn.role === "user"
        ? { role: "user", id: newId(), pieces: pieces(turn.pieces, renamed), leftOut: (turn.leftOut ?? []).flatMap((id) => renamed.get(id) ?? []) }
        : { ...turn, id: newId() }),
  }));
}

function pieces(found: Conversation["draft"]["pieces"], renamed: Map<string, string>): Conversation["draft"]["pieces"] {
  return found.flatMap((piece): Conversation["draft"]["pieces"] => {
    if ("text" in piece) return [{ text: String(piece.text) }];
    const id = renamed.get(piece.picture);
    return id ? [{ picture: id }] : [];
  });
}

function picturesIn(conversation: Conversation): string[] {
  return [
    ...picturesOf(conversation.draft.pieces),
    ...conversation.turns.flatMap((turn) => (turn.role === "user" ? picturesOf(turn.pieces) : [])),
  ];
}
