// What a file is, by its first bytes and not by its name, and how large a picture in it claims to be.

export interface Kind {
  /** The format's usual name; null where it is unknown. */
  name: string | null;
  /** In pixels, before it is turned upright; 0 where the head does not tell. */
  width: number;
  height: number;
  /** It has more than one frame. */
  moves: boolean;
}

const ASKED = 2 << 20; // bytes that are looked at; a photograph's size may stand behind its thumbnail

const MAGIC: [string, string][] = [
  ["25504446", "PDF"],
  ["424d", "BMP"],
  ["49492a00", "TIFF"],
  ["4d4d002a", "TIFF"],
  ["38425053", "PSD"],
  ["00000100", "ICO"],
  ["ff0a", "JPEG XL"],
  ["0000000c4a584c20", "JPEG XL"],
  ["0000000c6a502020", "JPEG 2000"],
  ["504b0304", "ZIP"],
  ["1f8b", "GZIP"],
  ["1a45dfa3", "video"],
  ["000001ba", "video"],
];
const BRANDS: Record<string, string> = { heic: "HEIC", heix: "HEIC", heim: "HEIC", hevc: "HEIC", mif1: "HEIC", msf1: "HEIC", avif: "AVIF", avis: "AVIF" };

export async function kindOf(file: Blob): Promise<Kind> {
  const bytes = new Uint8Array(await file.slice(0, ASKED).arrayBuffer());
  const view = new DataView(bytes.buffer);
  const hex = [...bytes.subarray(0, 12)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const words = new TextDecoder("latin1").decode(bytes.subarray(0, 512));
  if (hex.startsWith("ffd8ff")) return still("JPEG", ...jpegSize(view));
  if (hex.startsWith("89504e470d0a1a0a")) return png(view, bytes);
  if (/^GIF8[79]a/.test(words) && bytes.length >= 10) return gif(view, bytes);
  if (words.startsWith("RIFF") && words.slice(8, 12) === "WEBP" && bytes.length >= 30) return webp(view, words);
  if (words.slice(4, 8) === "ftyp") return still(BRANDS[words.slice(8, 12).toLowerCase()] ?? "video");
  if (/^\s*(?:<\?xml[^]*?|<!--[^]*?-->\s*|<!doctype svg[^]*?)?<svg[\s>]/i.test(words)) return still("SVG");
  return still(MAGIC.find(([start]) => hex.startsWith(start))?.[1] ?? null);
}

function still(name: string | null, width = 0, height = 0): Kind {
  return { name, width, height, moves: false };
}

/** Width and height out of a JPEG's start-of-frame segment. */
function jpegSize(view: DataView): [number, number] {
  let at = 2;
  while (at + 9 < view.byteLength) {
    if (view.getUint8(at) !== 0xff) return [0, 0];
    const marker = view.getUint8(at + 1);
    if (marker === 0xff) {
      at += 1; // filling
      continue;
    }
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) return [view.getUint16(at + 7), view.getUint16(at + 5)];
    at += 2 + (marker === 0x01 || (marker >= 0xd0 && marker <= 0xd8) ? 0 : view.getUint16(at + 2));
  }
  return [0, 0];
}

function png(view: DataView, bytes: Uint8Array): Kind {
  if (bytes.length < 24) return still("PNG");
  const until = find(bytes, "IDAT");
  const moving = find(bytes, "acTL");
  return { name: "PNG", width: view.getUint32(16), height: view.getUint32(20), moves: moving >= 0 && (until < 0 || moving < until) };
}

function gif(view: DataView, bytes: Uint8Array): Kind {
  return { name: "GIF", width: view.getUint16(6, true), height: view.getUint16(8, true), moves: framesOf(bytes) > 1 };
}

/** How many frames a GIF has, as far as it is looked at: it is read block by block, which are short rows of bytes. */
function framesOf(bytes: Uint8Array): number {
  const table = (flags: number): number => (flags & 0x80 ? 3 << ((flags & 7) + 1) : 0);
  let frames = 0;
  let at = 13 + table(bytes[10] ?? 0);
  while (frames < 2 && (bytes[at] === 0x21 || bytes[at] === 0x2c)) {
    const frame = bytes[at] === 0x2c;
    if (frame) frames++;
    at += frame ? 11 + table(bytes[at + 9] ?? 0) : 2;
    while (bytes[at]) at += bytes[at]! + 1;
    at += 1;
  }
  return frames;
}

function webp(view: DataView, words: string): Kind {
  const chunk = words.slice(12, 16);
  if (chunk === "VP8X") {
    const wide = (at: number): number => 1 + view.getUint16(at, true) + (view.getUint8(at + 2) << 16);
    return { name: "WEBP", width: wide(24), height: wide(27), moves: (view.getUint8(20) & 2) !== 0 };
  }
  if (chunk === "VP8L") {
    const bits = view.getUint32(21, true);
    return still("WEBP", 1 + (bits & 0x3fff), 1 + ((bits >> 14) & 0x3fff));
  }
  return still("WEBP", view.getUint16(26, true) & 0x3fff, view.getUint16(28, true) & 0x3fff);
}

function find(bytes: Uint8Array, letters: string, from = 0): number {
  const wanted = [...letters].map((letter) => letter.charCodeAt(0));
  for (let at = bytes.indexOf(wanted[0]!, from); at >= 0; at = bytes.indexOf(wanted[0]!, at + 1)) {
    if (wanted.every((byte, step) => bytes[at + step] === byte)) return at;
  }
  return -1;
}
