// Work spread over frames, so that the page stays free for what somebody does meanwhile.

const AT_ONCE = 8; // milliseconds of dear drawing in one frame

const waiting: (() => void)[] = [];

/** Calls something before the next frame is shown; a number that `cancelAnimationFrame` takes. */
export function nextFrame(act: () => void): number {
  if (!document.hidden) return requestAnimationFrame(act);
  act(); // nobody sees it, and hidden pages have no frames
  return 0;
}

/** Does what is dear to draw after all such that came before, some of it a frame. */
export function inTurn(draw: () => void): Promise<void> {
  return new Promise((resolve, reject) => {
    waiting.push(() => {
      try {
        resolve(draw());
      } catch (error) {
        reject(error as Error);
      }
    });
    if (waiting.length === 1) nextFrame(work);
  });
}

function work(): void {
  const end = performance.now() + AT_ONCE;
  while (waiting.length) {
    waiting[0]!(); // it stands there until it is done: who comes meanwhile starts no second row
    waiting.shift();
    if (waiting.length && performance.now() > end && !document.hidden) return void requestAnimationFrame(work);
  }
}
