// The browser's back and forward, which go from chat to chat.

/** The chat of this place in the history. */
export function chatOfAddress(): string | null {
  const { chat } = (history.state ?? {}) as { chat?: unknown };
  return typeof chat === "string" ? chat : null;
}

/** Makes a chat a place of its own in the history; `instead` has it take the place that is there. */
export function goTo(chat: string, instead: boolean): void {
  if (chatOfAddress() === chat) return;
  if (instead || chatOfAddress() === null) history.replaceState({ chat }, "");
  else history.pushState({ chat }, "");
}
