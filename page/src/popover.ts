// Small panels that open from a button, inside the window, and close by Esc and by a press anywhere else.

import { h } from "./dom";
import { newId } from "./types";

const EDGE = 8; // pixels that stay free at the window's edges

/** Makes a button open a panel. What is in it is made when it opens. */
export function opens(button: HTMLButtonElement, label: string, content: () => (Node | string)[]): HTMLButtonElement {
  button.setAttribute("aria-haspopup", "dialog");
  button.setAttribute("aria-expanded", "false");
  // the browser closes an open panel on a press outside it, the button included; by the click it must be known that it was open
  button.addEventListener("pointerdown", () => (button.dataset.open = button.getAttribute("aria-expanded") ?? "false"));
  button.addEventListener("click", () => {
    const open = button.dataset.open === "true" || button.getAttribute("aria-expanded") === "true";
    button.dataset.open = "false";
    if (open) document.querySelector<HTMLElement>(".popover:popover-open")?.hidePopover();
    else show(button, label, content());
  });
  return button;
}

function show(button: HTMLButtonElement, label: string, content: (Node | string)[]): void {
  const panel = h("div", { class: "popover", popover: "auto", role: "dialog", "aria-label": label, id: `popover-${newId()}`, tabIndex: -1 }, ...content);
  document.body.append(panel);
  panel.addEventListener("toggle", (event) => {
    if (event.newState !== "closed") return;
    button.setAttribute("aria-expanded", "false");
    panel.remove();
  });
  panel.addEventListener("click", (event) => {
    if ((event.target as Element).closest("[data-closes]")) panel.hidePopover();
  });
  panel.showPopover();
  button.setAttribute("aria-expanded", "true");
  place(panel, button);
  (panel.querySelector<HTMLElement>("button, input, a") ?? panel).focus();
}

/** Below the button where there is room, else above it; never over the window's edge. */
function place(panel: HTMLElement, button: HTMLElement): void {
  const at = button.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = panel;
  const below = at.bottom + EDGE + height < innerHeight;
  const top = below ? at.bottom + 4 : at.top - height - 4;
  panel.style.left = `${Math.max(EDGE, Math.min(at.left, innerWidth - width - EDGE))}px`;
  panel.style.top = `${Math.max(EDGE, Math.min(top, innerHeight - height - EDGE))}px`;
}

/** Keeps the focus where it was, when what has it is drawn anew: on what has the same name in the same turn. */
export function keepingFocus(draw: () => void): void {
  const had = document.activeElement;
  const turn = had?.closest("[data-turn]")?.getAttribute("data-turn");
  const name = had?.getAttribute("aria-label") ?? had?.textContent;
  draw();
  if (!(had instanceof HTMLElement) || had.isConnected || !name) return;
  const inside = turn ? document.querySelector(`[data-turn="${CSS.escape(turn)}"]`) : document.querySelector(".sidebar");
  const again = [...(inside?.querySelectorAll<HTMLElement>("button, summary, input") ?? [])].find((each) => (each.getAttribute("aria-label") ?? each.textContent) === name);
  again?.focus({ preventScroll: true });
}
