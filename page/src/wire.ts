// A conversation as the server takes it: pictures as data URIs, `<image>` only where somebody placed one.

import type { WireMessage } from "./api";
import type { Store } from "./store";
import type { Picture, Piece, Turn } from "./types";
import { answerOf, picturesOf, textOf } from "./types";

const MARK = "<image>";
const uris = new WeakMap<Blob, Promise<string>>();
const blanks = new Map<string, string>();

export type Source = (picture: Picture) => Promise<string>;

/** A picture of a question that this browser does not have (any more). It is never left out in silence. */
export class MissingPicture extends Error {
  constructor() {
    super("A picture of this chat is missing in this browser, so the question was not asked without it.");
  }
}

/** A picture's own bytes as a data URI. */
export const whole: Source = (picture) => {
  const known = uris.get(picture.blob);
  if (known) return known;
  const made = dataUri(picture.blob);
  uris.set(picture.blob, made);
  return made;
};

/** @throws MissingPicture the browser lost its bytes */
export function dataUri(blob: Blob): Promise<string> {
  return new Promise<string>((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(new MissingPicture());
    reader.readAsDataURL(blob);
  });
}

/** How many bytes a picture takes in a request. */
export function bytesOf(picture: Picture): number {
  return Math.ceil(picture.blob.size / 3) * 4 + 120;
}

/** An empty picture of the same size: for counting, which looks at no picture, it is as good and far smaller. */
export const blank: Source = async (picture) => {
  const size = `${picture.width}x${picture.height}`;
  const known = blanks.get(size);
  if (known) return known;
  const canvas = document.createElement("canvas");
  canvas.width = picture.width;
  canvas.height = picture.height;
  const made = canvas.toDataURL("image/png");
  if (!made.startsWith("data:image/png")) return whole(picture); // larger than this browser's canvases
  blanks.set(size, made);
  return made;
};

/** Whether some picture stands between two texts: only then has somebody placed it. */
export function isPlaced(pieces: readonly Piece[]): boolean {
  const solid = pieces.filter((piece) => "picture" in piece || piece.text.trim() !== "");
  const first = solid.findIndex((piece) => "text" in piece);
  const last = solid.findLastIndex((piece) => "text" in piece);
  return solid.some((piece, at) => "picture" in piece && at > first && at < last && first >= 0);
}

/**
 * The messages of a conversation. Pictures that are left out are not sent; those that nobody placed go where the
 * template's family was trained to have them (`place`).
 *
 * @throws MissingPicture a picture that is not left out is not there
 */
export async function messagesOf(
  turns: readonly Turn[],
  system: string | null,
  place: "first" | "last",
  store: Store,
  source: Source = whole,
): Promise<WireMessage[]> {
  const messages: WireMessage[] = system === null ? [] : [{ role: "system", content: system }];
  for (const turn of turns) {
    if (turn.role === "assistant") {
      messages.push({ role: "assistant", content: answerOf(turn).text });
      continue;
    }
    const kept = turn.pieces.filter((piece) => "text" in piece || !turn.leftOut.includes(piece.picture));
    messages.push({ role: "user", content: await contentOf(kept, place, store, source) });
  }
  return messages;
}

async function contentOf(pieces: Piece[], place: "first" | "last", store: Store, source: Source): Promise<WireMessage["content"]> {
  const placed = isPlaced(pieces);
  const text = placed
    ? pieces.map((piece) => ("text" in piece ? piece.text : MARK)).join("")
    : textOf(pieces).trim();
  const images = [];
  for (const id of picturesOf(pieces)) {
    const picture = store.picture(id);
    if (!picture) throw new MissingPicture();
    images.push({ type: "image_url" as const, image_url: { url: await source(picture) } });
  }
  if (!images.length) return text;
  const words = text ? [{ type: "text" as const, text }] : [];
  return place === "first" && !placed ? [...images, ...words] : [...words, ...images];
}
