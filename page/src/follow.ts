// Keeps the end of a conversation in view while it grows, unless the reader has scrolled away; a button leads back.

import { h, icon } from "./dom";

const NEAR = 48; // pixels from the end that count as the end

export class Follower {
  readonly button = h("button", { type: "button", class: "to-end", hidden: true, onClick: () => this.toEnd() }, icon("arrowDown"), "To the end");
  private following = true;
  private last = 0;
  private height = 0;

  /** `growing` says whether an answer grows: then a press on something does not end the following. */
  constructor(private readonly scroll: HTMLElement, content: HTMLElement, growing: () => boolean) {
    scroll.addEventListener("scroll", () => this.scrolled(), { passive: true });
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

  private get left(): number {
    return this.scroll.scrollHeight - this.scroll.clientHeight - this.scroll.scrollTop;
  }

  private grown(): void {
    const { scrollHeight } = this.scroll;
    if (this.following && scrollHeight !== this.height) this.jump();
    this.height = scrollHeight;
    this.button.hidden = this.left < 4 * NEAR;
  }

  private jump(): void {
    this.scroll.scrollTop = this.scroll.scrollHeight;
    this.last = this.scroll.scrollTop;
  }

  private scrolled(): void {
    const { scrollTop } = this.scroll;
    if (this.left <= NEAR && scrollTop > this.last) this.following = true;
    else if (scrollTop < this.last - 2) this.following = false; // only a reader goes up
    this.last = scrollTop;
    this.button.hidden = this.left < 4 * NEAR;
  }
}
