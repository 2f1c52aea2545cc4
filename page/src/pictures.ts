// From files to pictures: checked against the server's limits, measured, and made smaller where that is wanted.

import type { Info, Picture, Problem } from "./types";
import { newId } from "./types";
import { megabytes } from "./dom";

export type Taken = { picture: Picture } | { problem: Problem; file: File; shrinkable: boolean };

const LONGEST = 2048;

/** A picture out of a file, or what is wrong with it. */
export async function take(file: File, limits: Info["limits"]): Promise<Taken> {
  const name = file.name || "picture";
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) {
    const about = file.type.startsWith("image/") || !file.type
      ? `${name} is damaged, or no picture that this browser can read.`
      : `${name} is no picture (${file.type}).`;
    const advice = "Save it as PNG or JPEG in a picture program and add it again.";
    return { problem: { message: about, advice, retry: null }, file, shrinkable: false };
  }
  const { width, height } = bitmap;
  bitmap.close();
  if (file.size > limits.image_bytes) {
    const message = `${name} is ${megabytes(file.size)}; this server takes ${megabytes(limits.image_bytes)} a picture.`;
    const advice = `It can be made smaller here, to ${LONGEST} pixels on its long side.`;
    return { problem: { message, advice, retry: null }, file, shrinkable: true };
  }
  return { picture: { id: newId(), name, type: file.type, width, height, blob: file } };
}

/** The picture of a file, at most `LONGEST` pixels on its long side. */
export async function shrunk(file: File): Promise<File> {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d")!;
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const blob = await new Promise<Blob | null>((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
  if (!blob) throw new Error("this browser can't write pictures");
  return new File([blob], file.name.replace(/\.\w+$/, "") + ".jpg", { type: "image/jpeg" });
}

/** A picture that the server offers at an address of its own. */
export async function fetched(address: string, name: string): Promise<File> {
  const response = await fetch(address);
  const blob = await response.blob();
  return new File([blob], name, { type: blob.type });
}
