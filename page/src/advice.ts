// What a person can do about an error of the server, and errors in people's words.

/** Words as a sentence: a capital letter and a full stop. */
export function sentence(words: string): string {
  const trimmed = words.trim();
  if (!trimmed) return "Something went wrong.";
  const whole = trimmed[0]!.toUpperCase() + trimmed.slice(1);
  return /[.!?…]$/.test(whole) ? whole : `${whole}.`;
}

/** What can be done about an error of this status and code. */
export function adviceFor(status: number, code: string): string {
  const known: Record<string, string> = {
    image_too_large: "Add it again: it is made as small as the model can use.",
    invalid_image: "Open it in a picture program and save it as PNG or JPEG, then add it again.",
    unsupported_image_format: "Save it as PNG, JPEG, WebP or GIF, then add it again.",
    image_aspect_ratio: "Cut the picture to the part that you ask about.",
    too_many_images: "Leave some of the earlier pictures out: the eye on each picture does that.",
    context_length_exceeded: "Leave earlier pictures out with the eye on them, shorten the question, or start a new chat.",
    request_too_large: "Send fewer or smaller pictures at once.",
    server_busy: "The server answers somebody else. Try again in a moment; your question is kept.",
    model_loading: "It goes on loading. Try again in a moment; your question is kept.",
    model_failed: "Choose another model at the top, or see the server's log.",
    insufficient_memory: "The server has no memory for this now. Try again with fewer pictures.",
    invalid_api_key: "Enter the key that the server was started with.",
    timeout: "Ask for a shorter answer, or raise the server's --deadline.",
    unreachable: "Is it still running? Nothing is lost.",
  };
  if (code in known) return known[code]!;
  if (status === 503) return known.server_busy!;
  return status >= 500 ? "Try again; if it stays so, the server's log says more." : "";
}
