// From files to pictures: told what they are, made as small as the model can use, in a format that the server takes.

import { megabytes } from "./dom";
import type { Kind } from "./kinds";
import { kindOf } from "./kinds";
import type { Limits, Picture, Problem } from "./types";
import { newId } from "./types";

export type Taken = { picture: Picture } | { problem: Problem };

const MOST = 160_000_000; // pixels that a browser opens without harm: 640 MB of them
const GOOD = 0.9; // how well a smaller picture is kept

/** A picture out of a file, or what is wrong with it. `original` leaves it as large as it is. */
export async function take(file: File, limits: Limits, original = false): Promise<Taken> {
  const name = file.name || "the picture";
  if (!file.size) return refused(`${name} is empty: it has 0 bytes.`, "Perhaps it was not copied or downloaded to its end.");
  let kind: Kind;
  try {
    kind = await kindOf(file);
  } catch {
    return refused(`${name} can't be read.`, "Was it moved or deleted, or is it a folder? Choose it again.");
  }
  const odd = tooLarge(name, kind, limits);
  if (odd) return odd;
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) return unreadable(name, file, kind);
  try {
    const thin = tooLarge(name, { ...kind, width: bitmap.width, height: bitmap.height }, limits);
    return thin ?? (await taken(name, file, kind, bitmap, limits, original));
  } finally {
    bitmap.close();
  }
}

async function taken(name: string, file: File, kind: Kind, bitmap: ImageBitmap, limits: Limits, original: boolean): Promise<Taken> {
  const { width, height } = bitmap;
  const readable = kind.name !== null && limits.formats.includes(kind.name);
  const scale = original ? 1 : Math.min(1, limits.useful_side / Math.max(width, height));
  const moves = kind.moves ? "it moves; the model sees its first frame" : "";
  if (scale === 1 && readable && file.size <= limits.image_bytes) {
    return { picture: { id: newId(), name, type: file.type || `image/${kind.name!.toLowerCase()}`, width, height, blob: file, added: Date.now(), note: moves } };
  }
  if (original && readable) {
    return refused(`${name} is ${megabytes(file.size)}; this server takes ${megabytes(limits.image_bytes)} a picture.`, "Add it again without keeping the original.");
  }
  const size: [number, number] = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
  const blob = await redrawn(bitmap, size, kind.name === "JPEG" || kind.name === "HEIC");
  if (!blob || blob.size > limits.image_bytes) {
    return refused(`${name} is ${megabytes(blob?.size ?? file.size)}, made smaller as far as is useful; this server takes ${megabytes(limits.image_bytes)} a picture.`, "Cut it to the part that you ask about.");
  }
  const smaller = scale < 1 ? `made smaller from ${width} × ${height}, ${megabytes(file.size)} to ${megabytes(blob.size)}` : "";
  const changed = readable ? "" : `changed from ${kind.name ?? "its own format"}, which the server does not read`;
  const note = [smaller || changed, moves].filter(Boolean).join("; ") || `${megabytes(file.size)} to ${megabytes(blob.size)}`;
  return { picture: { id: newId(), name, type: blob.type, width: size[0], height: size[1], blob, added: Date.now(), note } };
}

function refused(message: string, advice: string): Taken {
  return { problem: { message, advice, retry: null } };
}

/** What is wrong with a picture's size, before it is opened: a small file can claim to be a billion pixels. */
function tooLarge(name: string, { width, height }: Kind, limits: Limits): Taken | null {
  if (!width || !height) return null;
  const size = `${width.toLocaleString("en")} × ${height.toLocaleString("en")} pixels`;
  if (width * height > MOST) return refused(`${name} is ${size}; opening it would take ${megabytes(4 * width * height)} of memory.`, "Make it smaller in a picture program, for example to 2,000 pixels on its long side.");
  if (Math.max(width, height) > limits.aspect * Math.min(width, height)) return refused(`${name} is a thin strip of ${size}.`, "Cut it to the part that you ask about.");
  return null;
}

const ADVICE: Record<string, [string, string]> = {
  HEIC: ["a photograph in Apple's HEIC format, which this browser can't open", "On the iPhone choose Settings, Camera, Formats, Most Compatible; or share it as JPEG and add that."],
  PDF: ["a PDF document, not a picture", "Take a picture of the page (a screenshot will do) and add that."],
  SVG: ["a drawing in SVG, which is made of lines and not of pixels", "Export it as PNG and add that."],
  TIFF: ["a TIFF picture, which this browser can't open", "Save it as PNG or JPEG in a picture program and add that."],
  ZIP: ["an archive or an office document, not a picture", "Take the pictures out of it and add those."],
  GZIP: ["a compressed file, not a picture", "Unpack it and add the pictures in it."],
  PSD: ["a Photoshop document", "Export it as PNG or JPEG and add that."],
  video: ["a video, not a picture", "Take a screenshot of the moment that you ask about and add that."],
};

function unreadable(name: string, file: File, kind: Kind): Taken {
  const known = ADVICE[kind.name ?? ""];
  if (known) return refused(`${name} is ${known[0]}.`, known[1]);
  const save = "Save it as PNG or JPEG in a picture program and add it again.";
  if (kind.name) return refused(`${name} is damaged, or a ${kind.name} picture of a kind that this browser can't open.`, save);
  const audio = file.type.startsWith("audio/") ? "a sound" : "";
  const words = file.type.startsWith("text/") || file.type.includes("json") ? "a text" : "";
  const other = audio || words || (file.type && !file.type.startsWith("image/") ? `of the type ${file.type}` : "");
  return refused(`${name} is no picture${other ? `: it is ${other}` : " that is known here"}.`, "JPEG, PNG, WebP, GIF and whatever else this browser opens can be added.");
}

async function redrawn(bitmap: ImageBitmap, [width, height]: [number, number], photograph: boolean): Promise<Blob | null> {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  if (!context) return null;
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  // WebP keeps what is transparent; a browser that can't write it writes PNG
  const blob = await new Promise<Blob | null>((resolve) => canvas.toBlob(resolve, photograph ? "image/jpeg" : "image/webp", GOOD));
  canvas.width = canvas.height = 0; // lets go of the memory at once
  return blob;
}

/** A picture that the server offers at an address of its own. */
export async function fetched(address: string, name: string): Promise<File> {
  const response = await fetch(address);
  const blob = await response.blob();
  return new File([blob], name, { type: blob.type });
}
