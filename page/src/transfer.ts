// Conversations as a file: JSON with the pictures in it, written and read back. Nothing is kept before all was looked at.

import { megabytes } from "./dom";
import { kindOf } from "./kinds";
import { CLOSED, soundConversation, soundDraft } from "./sound";
import type { Store } from "./store";
import type { Conversation, Draft, Picture, Piece, Turn } from "./types";
import { newId, picturesIn, picturesOf } from "./types";
import { dataUri } from "./wire";

const FORMAT = "trifocal-chats";

interface WrittenPicture {
  name: string;
  width: number;
  height: number;
  data: string;
}

/** Why a file can't be read, as a sentence. */
export class OddFile extends Error {}

// A line for each chat and each picture: a browser's longest text is half a gigabyte, and a file of many pictures is longer.
const HEAD = `{"format":"${FORMAT}","version":1,"conversations":[\n`;
const BETWEEN = `],"pictures":{`;
const END = "}}";

export async function exported(store: Store): Promise<Blob> {
  const ids = new Set<string>();
  const conversations = [];
  for (const conversation of await store.all()) {
    const draft = await store.draft(conversation.id);
    for (const id of [...picturesOf(draft.pieces), ...picturesIn(conversation)]) ids.add(id);
    conversations.push(JSON.stringify({ ...conversation, draft: { pieces: draft.pieces } }));
  }
  await store.fetch([...ids]);
  const pictures: Blob[] = [];
  for (const id of ids) {
    const picture = store.picture(id);
    if (!picture) continue;
    const { name, width, height } = picture;
    const written: WrittenPicture = { name, width, height, data: await dataUri(picture.blob) };
    pictures.push(new Blob([pictures.length ? ",\n" : "", JSON.stringify(id), ":", JSON.stringify(written)]));
  }
  return new Blob([HEAD, conversations.join(",\n"), "\n", BETWEEN, "\n", ...pictures, "\n", END, "\n"], { type: "application/json" });
}

/**
 * Reads a file's conversations into the store; how many came in, how many were here already, and one of them to open.
 *
 * @throws OddFile nothing was kept
 */
export async function imported(file: File, store: Store): Promise<{ added: number; known: number; first: string | null }> {
  const { conversations, drafts, pictures } = await read(file);
  const here = await store.all();
  const origins = new Set(here.flatMap((each) => [originOf(each), each.origin]));
  const fresh = conversations.filter((each) => !origins.has(originOf(each)));
  const renamed = new Map<string, string>();
  for (const id of new Set(fresh.flatMap((each) => [...picturesIn(each), ...picturesOf(drafts.get(each)?.pieces ?? [])]))) {
    const picture = pictures.get(id);
    if (!picture) continue; // its place stays, and says that it is missing
    renamed.set(id, newId());
    await store.keep({ ...picture, id: renamed.get(id)! });
  }
  const ids = new Set(here.map((each) => each.id));
  let first: string | null = null;
  for (const conversation of fresh) {
    const made = settled(conversation, renamed, ids.has(conversation.id) ? newId() : conversation.id);
    await store.restore(made, { pieces: relabelled(drafts.get(conversation)?.pieces ?? [], renamed), editing: null });
    first ??= made.id;
  }
  const known = conversations.length - fresh.length;
  return { added: fresh.length, known, first: first ?? here.find((each) => conversations.some((read) => [originOf(each), each.origin].includes(originOf(read))))?.id ?? null };
}

interface Read {
  conversations: Conversation[];
  drafts: Map<Conversation, Draft>;
  pictures: Map<string, Omit<Picture, "id">>;
}

async function read(file: File): Promise<Read> {
  const ours = (await file.slice(0, HEAD.length).text()) === HEAD;
  const found = await (ours ? byLines(file) : atOnce(file));
  const drafts = new Map<Conversation, Draft>();
  const conversations = found.conversations.map((each, at) => {
    const conversation = soundConversation(each);
    if (!conversation) throw new OddFile(`${file.name}: chat ${at + 1} of ${found.conversations.length} is damaged. Nothing was imported.`);
    drafts.set(conversation, soundDraft((each as { draft?: unknown }).draft));
    return conversation;
  });
  return { conversations, drafts, pictures: found.pictures };
}

type Found = Pick<Read, "pictures"> & { conversations: unknown[] };

async function byLines(file: File): Promise<Found> {
  const conversations: unknown[] = [];
  const pictures = new Map<string, Omit<Picture, "id">>();
  let [head, between, ended] = [true, false, false];
  for await (const line of linesOf(file)) {
    if (head) head = false;
    else if (line === BETWEEN && !between) between = true;
    else if (line === END) ended = true;
    else if (line && !between) conversations.push(parsed(line.replace(/,$/, ""), file));
    else if (line) {
      for (const [id, each] of Object.entries(parsed(`{${line.replace(/,$/, "")}}`, file) as Record<string, WrittenPicture>)) pictures.set(id, await pictureOf(each, file.name));
    }
  }
  if (!ended) throw noJson(file);
  return { conversations, pictures };
}

async function* linesOf(file: File): AsyncGenerator<string> {
  const reader = file.stream().pipeThrough(new TextDecoderStream()).getReader();
  let held: string[] = [];
  while (true) {
    const { done, value = "" } = await reader.read();
    const [first = "", ...lines] = value.split("\n");
    held.push(first);
    for (const next of lines) {
      yield held.join("");
      held = [next];
    }
    if (done) break;
  }
  yield held.join("");
}

/** A file that another program may have written anew. */
async function atOnce(file: File): Promise<Found> {
  const text = await file.text().catch(() => {
    throw new OddFile(`${file.name} can't be read: it is ${megabytes(file.size)}, or was moved or deleted meanwhile.`);
  });
  const found = parsed(text, file) as { format?: unknown; conversations?: unknown; pictures?: unknown } | null;
  if (found?.format !== FORMAT || !Array.isArray(found.conversations)) {
    throw new OddFile(`${file.name} holds no chats of Trifocal; choose a file that “Export all” wrote.`);
  }
  const pictures = new Map<string, Omit<Picture, "id">>();
  for (const [id, each] of Object.entries((found.pictures ?? {}) as Record<string, WrittenPicture>)) pictures.set(id, await pictureOf(each, file.name));
  return { conversations: found.conversations as unknown[], pictures };
}

function parsed(text: string, file: File): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    throw noJson(file);
  }
}

function noJson(file: File): OddFile {
  return new OddFile(`${file.name} is no JSON file, or was cut short; choose a file that “Export all” wrote.`);
}

async function pictureOf(value: Partial<WrittenPicture> | null, file: string): Promise<Omit<Picture, "id">> {
  const name = typeof value?.name === "string" ? value.name.slice(0, 200) : "picture";
  const damaged = new OddFile(`${file}: its picture ${name} is damaged. Nothing was imported.`);
  const [head, body] = String(value?.data).split(",", 2);
  const type = /^data:(image\/[\w.+-]+);base64$/.exec(head ?? "")?.[1];
  if (!type || !body) throw damaged;
  let blob: Blob;
  try {
    blob = new Blob([Uint8Array.from(atob(body), (letter) => letter.charCodeAt(0))], { type });
  } catch {
    throw damaged;
  }
  const { width, height } = await kindOf(blob);
  if (!width || !height || width * height > 160_000_000) throw damaged; // what its bytes say counts, not what stands beside them
  const turned = width === value?.height && height === value?.width; // a photograph that was taken upright
  return { name, type, width: turned ? height : width, height: turned ? width : height, blob, added: Date.now(), note: "" };
}

/** The same for the same words and answers, so that a file that comes twice is known. */
function originOf(conversation: Conversation): string {
  const said = conversation.turns.map((turn) => (turn.role === "user"
    ? turn.pieces.map((piece) => ("text" in piece ? piece.text : "\0"))
    : turn.answers.map((answer) => answer.text)));
  return `${conversation.title} ${digest(JSON.stringify(said))}`;
}

/** Two 32-bit hashes of a text (after FNV-1a); over plain http the browser gives no better ones. */
function digest(text: string): string {
  let [one, other] = [0x811c9dc5, 0xc9dc5118];
  for (let at = 0; at < text.length; at++) {
    one = Math.imul(one ^ text.charCodeAt(at), 0x01000193);
    other = Math.imul(other ^ text.charCodeAt(at), 0x85ebca6b) + at;
  }
  return `${(one >>> 0).toString(36)}${(other >>> 0).toString(36)}`;
}

/** A conversation that was read, with its pictures under new names and without answers under way. */
function settled(conversation: Conversation, renamed: Map<string, string>, id: string): Conversation {
  const turns = conversation.turns.map((turn): Turn => {
    if (turn.role === "user") {
      return { ...turn, pieces: relabelled(turn.pieces, renamed), leftOut: turn.leftOut.map((picture) => renamed.get(picture) ?? picture) };
    }
    const answers = turn.answers.map((answer) => (answer.writer || answer.waiting ? { ...answer, writer: null, waiting: false, stopped: CLOSED } : answer));
    return { ...turn, answers };
  });
  return { ...conversation, id, turns, origin: originOf(conversation) };
}

function relabelled(pieces: readonly Piece[], renamed: Map<string, string>): Piece[] {
  return pieces.map((piece) => ("text" in piece ? piece : { picture: renamed.get(piece.picture) ?? piece.picture }));
}

/** Gives a file to the browser to keep. */
export function handOut(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
