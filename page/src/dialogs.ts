// Dialogs: what the model sees, the camera, the keys, and a server's key.

import { h, iconButton, megabytes, plural } from "./dom";
import type { Box, Picture, Preview } from "./types";

/** A modal dialog with a title; resolves when it is closed. */
export function dialog(title: string, ...content: (Node | string)[]): { element: HTMLDialogElement; closed: Promise<void> } {
  const heading = h("h2", { id: `dialog-${Math.random().toString(36).slice(2)}` }, title);
  const element = h(
    "dialog",
    { class: "dialog", "aria-labelledby": heading.id, onClick: (event: MouseEvent) => event.target === element && element.close() },
    h("div", { class: "dialog-box" },
      h("header", {}, heading, iconButton("close", "Close", () => element.close())),
      h("div", { class: "dialog-body" }, ...content)),
  );
  document.body.append(element);
  const closed = new Promise<void>((resolve) => {
    element.addEventListener("close", () => {
      element.remove();
      resolve();
    });
  });
  element.showModal();
  return { element, closed };
}

/** A picture, as large as the window allows; `seen` asks the server what the model sees of it. */
export function pictureDialog(picture: Picture, url: string, seen: () => Promise<Preview>, straight = false): void {
  const body = h("div", { class: "preview" });
  const ask = (): void => {
    body.replaceChildren(h("p", { class: "muted" }, "Asking the server…"));
    seen().then(
      (preview) => body.replaceChildren(...previewed(picture, url, preview)),
      (error: Error) => body.replaceChildren(h("p", { class: "problem" }, error.message)),
    );
  };
  body.append(
    h("img", { class: "enlarged", src: url, alt: picture.name }),
    h("p", { class: "muted" }, `${picture.width.toLocaleString("en")} × ${picture.height.toLocaleString("en")} pixels, ${megabytes(picture.blob.size)}${picture.note ? `; ${picture.note}` : ""}`),
    h("div", { class: "actions" }, h("button", { type: "button", onClick: ask }, "What the model sees")),
  );
  dialog(straight ? "What the model sees" : picture.name, body);
  if (straight) ask();
}

function previewed(picture: Picture, url: string, preview: Preview): Node[] {
  const [width, height] = preview.size;
  const whole = preview.tiles.length === 1;
  const frame = h("div", { class: "preview-original" },
    h("img", { src: url, alt: `${picture.name}, as it was added` }),
    ...(whole ? [outline(preview.seen, "seen")] : preview.tiles.slice(1).map((tile) => outline(tile.box, "tile"))));
  return [
    h("p", {}, preview.fit_words),
    h("div", { class: "preview-pair" },
      h("figure", {}, frame, h("figcaption", {}, `${picture.name}, ${width} × ${height} pixels`)),
      h("figure", {},
        h("div", { class: `preview-tiles tiles-${Math.min(preview.tiles.length, 5)}` },
          ...preview.tiles.map((tile) => h("img", { src: tile.image, alt: `The model's view: ${tile.title}`, title: tile.title }))),
        h("figcaption", {}, `What the model is given: ${plural(preview.tiles.length, "square")}, ${plural(preview.positions, "position")}`))),
  ];
}

function outline([left, top, width, height]: Box, kind: string): HTMLElement {
  const box = h("div", { class: `outline ${kind}`, "aria-hidden": "true" });
  box.style.left = `${left * 100}%`;
  box.style.top = `${top * 100}%`;
  box.style.width = `${width * 100}%`;
  box.style.height = `${height * 100}%`;
  return box;
}

/** A picture from the camera, or null. */
export async function cameraDialog(): Promise<File | null> {
  const video = h("video", { class: "camera", autoplay: true, muted: true, playsInline: true, "aria-label": "The camera's picture" });
  const told = h("p", { class: "muted", role: "status" }, "Asking for the camera…");
  let taken: File | null = null;
  const shoot = h("button", { type: "button", class: "primary", disabled: true }, "Take the picture");
  const { element, closed } = dialog("Camera", told, video, h("div", { class: "actions" }, shoot));
  let stream: MediaStream | null = null;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
    video.srcObject = stream;
    told.remove();
    shoot.disabled = false;
  } catch {
    told.className = "problem";
    told.textContent =
      "The camera can't be used: it was refused, there is none, or the page is not served from this machine or over " +
      "https. Take the picture with the camera's own program and add the file.";
    video.remove();
    shoot.remove();
  }
  shoot.addEventListener("click", () => {
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d")!.drawImage(video, 0, 0);
    canvas.toBlob(
      (blob) => {
        if (blob) taken = new File([blob], "camera.jpg", { type: "image/jpeg" });
        element.close();
      },
      "image/jpeg",
      0.95,
    );
  });
  await closed;
  stream?.getTracks().forEach((track) => track.stop());
  return taken;
}

const KEYS: [string, string][] = [
  ["Enter", "Send (on a phone: a new line)"],
  ["Shift + Enter", "A new line"],
  ["Esc", "Stop the answer, close a panel"],
  ["↑ in an empty field", "Edit the last question"],
  ["Alt + ← →", "Move the picture that has the focus"],
  ["Delete", "Take the picture that has the focus away"],
  ["Ctrl + Shift + O", "A new chat"],
  ["Ctrl + K", "Search the chats"],
  ["Ctrl + ,", "Settings"],
  ["Ctrl + /", "These keys"],
];

export function helpDialog(): void {
  dialog(
    "Keys",
    h("dl", { class: "keys" }, ...KEYS.flatMap(([keys, does]) => [h("dt", {}, h("kbd", {}, keys)), h("dd", {}, does)])),
  );
}

/** Asks for the server's key; null when nobody gives one. */
export async function keyDialog(): Promise<string | null> {
  const input = h("input", { type: "password", id: "server-key", autocomplete: "off", required: true });
  let given: string | null = null;
  const form = h("form", { class: "stack", method: "dialog" },
    h("p", {}, "This server answers only with a key: one of those in the file it was started with (--api-key-file)."),
    h("label", { for: "server-key" }, "Key"),
    input,
    h("div", { class: "actions" }, h("button", { class: "primary" }, "Use it")));
  const { closed } = dialog("A key is needed", form);
  form.addEventListener("submit", () => (given = input.value));
  input.focus();
  await closed;
  return given;
}
