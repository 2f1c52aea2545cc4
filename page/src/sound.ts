// Whether what was read is a conversation: everything that the page relies on is looked at, before anything is shown or kept.

import type { Answer, AssistantTurn, Conversation, Draft, Outcome, Piece, Problem, Sampling, Settings, Turn, UserTurn } from "./types";
import { PLAIN, freshAnswer, newId } from "./types";

type Found = Record<string, unknown>;

const LONGEST_TITLE = 200;

function isObject(value: unknown): value is Found {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function listOf<T>(value: unknown, read: (item: unknown) => T | null): T[] | null {
  if (!Array.isArray(value)) return null;
  const read_ = value.map(read);
  return read_.some((item) => item === null) ? null : (read_ as T[]);
}

function time(value: unknown): number {
  return typeof value === "number" && value > 0 && value < 8.64e15 ? value : 0;
}

function number(value: unknown): number {
  return typeof value === "number" && Number.isFinite(value) ? value : 0;
}

function text(value: unknown): string | null {
  return typeof value === "string" ? value : null;
}

/** The conversation in a value that was read, or null where it is none. */
export function soundConversation(value: unknown): Conversation | null {
  if (!isObject(value) || typeof value.id !== "string" || !value.id) return null;
  const turns = listOf(value.turns ?? [], soundTurn);
  if (!turns || new Set(turns.map((turn) => turn.id)).size < turns.length) return null;
  return {
    id: value.id,
    title: (text(value.title) ?? "").slice(0, LONGEST_TITLE),
    named: value.named === true,
    updated: time(value.updated) || Date.now(),
    turns,
    settings: soundSettings(value.settings),
    model: text(value.model),
    origin: text(value.origin),
  };
}

export function soundDraft(value: unknown): Draft {
  const pieces = isObject(value) ? listOf(value.pieces, soundPiece) : null;
  const editing = isObject(value) && isObject(value.editing) ? value.editing : null;
  const before = editing ? listOf(editing.before, soundPiece) : null;
  const turn = text(editing?.turn);
  return { pieces: pieces ?? [], editing: turn && before ? { turn, before } : null };
}

function soundTurn(value: unknown): Turn | null {
  if (!isObject(value)) return null;
  const id = text(value.id) || newId();
  if (value.role === "user") return soundQuestion(value, id);
  if (value.role !== "assistant") return null;
  const answers = listOf(value.answers, soundAnswer);
  if (!answers) return null;
  const shown = Math.min(Math.max(Math.floor(number(value.shown)), 0), Math.max(answers.length - 1, 0));
  return { role: "assistant", id, answers, shown } satisfies AssistantTurn;
}

function soundQuestion(value: Found, id: string): UserTurn | null {
  const pieces = listOf(value.pieces, soundPiece);
  const leftOut = listOf(value.leftOut ?? [], text);
  return pieces && leftOut ? { role: "user", id, at: time(value.at), pieces, leftOut } : null;
}

function soundPiece(value: unknown): Piece | null {
  if (!isObject(value)) return null;
  if (typeof value.text === "string") return { text: value.text };
  return typeof value.picture === "string" ? { picture: value.picture } : null;
}

function soundAnswer(value: unknown): Answer | null {
  if (!isObject(value) || typeof value.text !== "string") return null;
  const outcome = soundOutcome(value.outcome);
  const problem = soundProblem(value.problem);
  const unfinished = !outcome && !problem && value.edited !== true && !text(value.stopped);
  return {
    ...freshAnswer(text(value.writer)),
    id: text(value.id) || newId(),
    text: value.text,
    outcome,
    problem,
    stopped: unfinished && !text(value.writer) && value.waiting !== true ? CLOSED : text(value.stopped),
    waiting: value.waiting === true,
    edited: value.edited === true,
    at: time(value.at),
  };
}

/** What is said of an answer whose page went away while it grew. */
export const CLOSED = "The page was closed here.";

function soundOutcome(value: unknown): Outcome | null {
  if (!isObject(value)) return null;
  const timings = isObject(value.timings) ? Object.entries(value.timings).map(([step, took]) => [step.slice(0, 40), number(took)]) : [];
  return {
    model: text(value.model) ?? "",
    finish: text(value.finish) ?? "",
    promptTokens: number(value.promptTokens),
    imageTokens: number(value.imageTokens),
    completionTokens: number(value.completionTokens),
    positions: (listOf(value.positions, number) as number[] | null) ?? [],
    leftOut: listOf(value.leftOut, text) ?? [],
    timings: Object.fromEntries(timings) as Record<string, number>,
    firstToken: number(value.firstToken),
    total: number(value.total),
  };
}

function soundProblem(value: unknown): Problem | null {
  if (!isObject(value) || typeof value.message !== "string") return null;
  return { message: value.message, advice: text(value.advice) ?? "", retry: typeof value.retry === "number" ? value.retry : null };
}

/** Settings in a value that was read; null where there are none. */
export function soundSettings(value: unknown): Settings | null {
  if (!isObject(value)) return null;
  return {
    sampling: soundSampling(value.sampling),
    system: text(value.system),
    template: text(value.template),
    allImages: value.allImages !== false,
  };
}

export function soundSampling(value: unknown): Sampling {
  const found = isObject(value) ? value : {};
  const within = (name: keyof Sampling, low: number, high: number): number => {
    const given = found[name];
    return typeof given === "number" && Number.isFinite(given) ? Math.min(high, Math.max(low, given)) : (PLAIN[name] as number);
  };
  const whole = (given: unknown, low: number): number | null => (typeof given === "number" && Number.isSafeInteger(given) && given >= low ? given : null);
  return {
    temperature: within("temperature", 0, 2),
    top_p: within("top_p", 0.05, 1),
    top_k: Math.floor(within("top_k", 0, 200)),
    min_p: within("min_p", 0, 0.5),
    repetition_penalty: within("repetition_penalty", 0.8, 2),
    max_tokens: whole(found.max_tokens, 1),
    seed: whole(found.seed, 0),
    stop: (listOf(found.stop ?? [], text) ?? []).slice(0, 16),
  };
}
