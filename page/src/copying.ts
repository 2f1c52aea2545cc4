// Copying, which says so, and works without https as well.

import { announce, h, icon, iconButton } from "./dom";
import { toast } from "./toast";

/** A button that copies what it is for; it shows for a moment that it did. */
export function copyButton(label: string, words: () => string): HTMLButtonElement {
  const button = iconButton("copy", label, () => void copied());
  const copied = async (): Promise<void> => {
    if (!(await copy(words()))) return toast("This browser does not let the page copy. Select the text and copy it with the keyboard.");
    button.replaceChildren(icon("check"));
    button.classList.add("done");
    announce("Copied");
    toast("Copied.", { seconds: 2 });
    setTimeout(() => {
      button.replaceChildren(icon("copy"));
      button.classList.remove("done");
    }, 1600);
  };
  return button;
}

async function copy(text: string): Promise<boolean> {
  if (navigator.clipboard && isSecureContext) {
    const done = await navigator.clipboard.writeText(text).then(() => true, () => false);
    if (done) return true;
  }
  // over plain http there is no clipboard: the old way, through a field that nobody sees
  const field = h("textarea", { class: "visually-hidden", value: text, "aria-hidden": "true" });
  const focused = document.activeElement;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  if (focused instanceof HTMLElement) focused.focus();
  return done;
}
