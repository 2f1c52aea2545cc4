// Short messages above the field, with something to do about them. They stand in the page, and so cover nothing.

import { h, iconButton } from "./dom";

/** Where messages appear; the frame puts it above the field. */
export const toasts = h("div", { class: "toasts", role: "status" });

const MOST = 3; // stand there at once: one message does not take another away, with what it offers to undo

export function toast(message: string, more: { label?: string; act?: () => void; seconds?: number } = {}): void {
  const { label, act, seconds = 8 } = more;
  const element = h("div", { class: "toast" }, h("span", {}, message));
  let timer = 0;
  const wait = (): void => {
    clearTimeout(timer);
    timer = window.setTimeout(() => element.remove(), seconds * 1000);
  };
  if (label && act) {
    element.append(h("button", { type: "button", "data-act": "", onClick: () => { element.remove(); act(); } }, label));
  }
  element.append(iconButton("close", "Dismiss", () => element.remove()));
  // it stays while somebody points at it or has the focus in it
  element.addEventListener("pointerenter", () => clearTimeout(timer));
  element.addEventListener("focusin", () => clearTimeout(timer));
  element.addEventListener("pointerleave", wait);
  element.addEventListener("focusout", wait);
  for (const same of [...toasts.children].filter((each) => !act && each.textContent === element.textContent)) same.remove();
  toasts.append(element);
  while (toasts.children.length > MOST) {
    const older = [...toasts.children].slice(0, -1);
    const gone = older.find((each) => !each.querySelector("[data-act]")) ?? (act ? older[0] : undefined);
    if (!gone) break; // what only tells something takes away nothing that can be undone
    gone.remove();
  }
  wait();
}
