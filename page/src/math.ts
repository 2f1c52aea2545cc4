// LaTeX as MathML, which browsers draw with their own fonts; loaded when the first formula comes.

import temml from "temml";

/** Draws a formula into an element. One that can't be read is shown as it was written. */
export function drawFormula(element: HTMLElement, tex: string, display: boolean): void {
  // into elements, never into HTML: styles are set one by one, which the page's policy allows
  temml.render(tex, element, { displayMode: display, throwOnError: true, trust: false, annotate: true, maxSize: [20, 20], maxExpand: 500 });
}
