// Chats by the day on which they were changed last, and times in words.

import type { Summary } from "./types";

const DAY = 24 * 3600 * 1000;

/** The newest first, under the name of their day. */
export function byDay(conversations: readonly Summary[], now = Date.now()): [string, Summary[]][] {
  const groups = new Map<string, Summary[]>();
  for (const each of conversations) {
    const name = dayOf(each.updated, now);
    groups.set(name, [...(groups.get(name) ?? []), each]);
  }
  return [...groups];
}

function dayOf(time: number, now: number): string {
  const today = new Date(now).setHours(0, 0, 0, 0);
  if (time >= today) return "Today";
  if (time >= today - DAY) return "Yesterday";
  if (time >= today - 7 * DAY) return "The last 7 days";
  if (time >= today - 30 * DAY) return "The last 30 days";
  return new Date(time).toLocaleDateString("en", { month: "long", year: "numeric" });
}

/** A time of today as a time, another with its day. */
export function shortTime(time: number, now = Date.now()): string {
  const date = new Date(time);
  const clock = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  if (time >= new Date(now).setHours(0, 0, 0, 0)) return clock;
  return `${date.toLocaleDateString("en", { day: "numeric", month: "short" })}, ${clock}`;
}

/** The day as the people here write it down to sort by: 2026-01-31. */
export function today(now = new Date()): string {
  return new Date(now.getTime() - now.getTimezoneOffset() * 60_000).toISOString().slice(0, 10);
}
