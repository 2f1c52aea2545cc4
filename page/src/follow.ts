// Keeps the end of a conversation in view while it grows, unless the reader has scrolled away; a button leads back.

import { h, icon } from "./dom";

const NEAR = 48; // pixels from the end that count as the end
const HAND = 1000; // milliseconds after a wheel, finger or key in which going up is the reader's doing
const UP = new Set(["ArrowUp", "PageUp", "Home"]);
const LEAP = 160; // pixels; the browser itself goes up by less, when what it shows shrinks

export class Follower {
  readonly button = h("button", { type: "button", class: "to-end", hidden: true, onClick: () => this.toEnd() }, icon("arrowDown"), "To the end");
  private following = true;
  private last = 0;
  private touched = -HAND;

  /** `growing` says whether an answer grows: then a press on something does not end the following. */
  constructor(private readonly scroll: HTMLElement, content: HTMLElement, growing: () => boolean) {
    scroll.addEventListener("scroll", () => this.scrolled(), { passive: true });
    const touch = (): void => void (this.touched = performance.now());
    scroll.addEventListener("wheel", touch, { passive: true });
    scroll.addEventListener("touchmove", touch, { passive: true });
    scroll.addEventListener("pointerdown", (event) => event.target === scroll && touch()); // its scroll bar
    scroll.addEventListener("keydown", (event) => UP.has(event.key) && !(event.target as Element).closest("footer") && touch());
    // what somebody presses must not move away under the finger when a panel opens or closes
    content.addEventListener("pointerdown", () => (this.following &&= growing()));
    content.addEventListener("keydown", () => (this.following &&= growing()));
  }

  /** What grows. */
  watch(...elements: HTMLElement[]): void {
    const observer = new ResizeObserver(() => this.grown());
    for (const element of [this.scroll, ...elements]) observer.observe(element);
  }

  /** Goes to the end, and stays with it. */
  toEnd(): void {
    this.following = true;
    this.jump();
  }

  /** Goes to the beginning, and stays there. */
  toStart(): void {
    this.following = false;
    this.scroll.scrollTop = this.last = 0;
  }

  private get left(): number {
    return this.scroll.scrollHeight - this.scroll.clientHeight - this.scroll.scrollTop;
  }

  private grown(): void {
    if (this.following) this.jump();
    this.offer();
  }

  private jump(): void {
    this.scroll.scrollTop = this.scroll.scrollHeight;
    this.last = this.scroll.scrollTop;
    this.offer();
  }

  private scrolled(): void {
    const went = this.scroll.scrollTop - this.last;
    const byHand = performance.now() - this.touched < HAND || -went > LEAP;
    this.last = this.scroll.scrollTop;
    if (this.left <= NEAR && went > 0) this.following = true;
    else if (went < -2 && this.left > NEAR && byHand) this.following = false;
    this.offer();
  }

  private offer(): void {
    this.button.hidden = this.left < 4 * NEAR;
  }
}
