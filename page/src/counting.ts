// What the next question takes of the context, counted by the server before anything is sent.

import * as api from "./api";
import { ApiError } from "./api";
import type { Answering } from "./answering";
import { tooMuch } from "./answering";
import type { Meter } from "./meter";
import type { Store } from "./store";
import type { LeftOut } from "./transcript";
import type { Conversation, Count, Info, Piece, Turn } from "./types";
import { keptPictures } from "./types";
import { MissingPicture, blank } from "./wire";

export const NOTHING: LeftOut = { turns: new Set(), pictures: [] };

export class Counting {
  private asking: AbortController | null = null;

  constructor(
    private readonly store: Store,
    private readonly answering: Answering,
    private readonly meter: Meter,
    private readonly info: () => Info | null,
  ) {}

  /** Counts a conversation with a question at its end, shows it, and tells what would be left out; null where nothing could be told. */
  async count(conversation: Conversation, draft: readonly Piece[], instead: string | null, longest: number | null): Promise<LeftOut | null> {
    this.asking?.abort();
    const info = this.info();
    if (!info) return null;
    const cut = instead === null ? -1 : conversation.turns.findIndex((turn) => turn.id === instead);
    const turns: Turn[] = cut >= 0 ? conversation.turns.slice(0, cut) : [...conversation.turns];
    if (draft.length) turns.push({ role: "user", id: "", at: 0, pieces: [...draft], leftOut: [] });
    if (!turns.length) {
      this.meter.show(null, []);
      return NOTHING;
    }
    const heavy = tooMuch(turns, this.store, info);
    const asking = new AbortController();
    this.asking = asking;
    try {
      const asked = await this.answering.asked(conversation, turns, blank);
      const count = await api.count({ ...asked, max_tokens: longest }, asking.signal);
      this.meter.show(count, this.names(turns), heavy?.message);
      return leftOut(turns, count, asked.messages[0]?.role === "system" ? 1 : 0);
    } catch (error) {
      if (asking.signal.aborted) return null;
      if (heavy) this.meter.show(null, [], heavy.message);
      else if (error instanceof MissingPicture) this.meter.show(null, [], error.message);
      else if (error instanceof ApiError && error.status === 400) this.meter.show(null, [], error.problem.message);
      return NOTHING;
    }
  }

  private names(turns: readonly Turn[]): string[] {
    return turns.flatMap((turn) => (turn.role === "user" ? keptPictures(turn) : [])).map((id) => this.store.picture(id)?.name ?? "picture");
  }
}

/** The turns and pictures that the server left out of its count; the first `system` messages are no turns. */
function leftOut(turns: readonly Turn[], count: Count, system: number): LeftOut {
  const out = turns.map((turn, at) => ({ turn, counted: count.messages[at + system] }));
  return {
    turns: new Set(out.filter(({ counted }) => counted?.left_out).map(({ turn }) => turn.id)),
    pictures: out.flatMap(({ turn, counted }) => (turn.role === "user" ? keptPictures(turn).filter((_, at) => counted?.pictures_left_out[at]) : [])),
  };
}
