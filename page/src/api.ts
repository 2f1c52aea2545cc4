// The server: what it is, what it counts, shows and explains, and its answers as they grow.

import { read, write } from "./choices";
import { adviceFor, sentence } from "./advice";
import type { Count, Info, Look, Outcome, Preview, Problem, Sampling, Timings } from "./types";

const KEY = "trifocal.key";

export interface WireMessage {
  role: "system" | "user" | "assistant";
  content: string | ({ type: "text"; text: string } | { type: "image_url"; image_url: { url: string } })[];
}

/** An error of the server or of the way to it, with what a person can do about it. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly code: string,
    readonly retry: number | null = null,
    /** What in the request it is about, as the server calls it. */
    readonly about: string | null = null,
  ) {
    super(message);
  }

  get problem(): Problem {
    return { message: sentence(this.message), advice: adviceFor(this.status, this.code), retry: this.retry };
  }
}

function headers(body: boolean): Record<string, string> {
  const key = read(KEY);
  return { ...(body ? { "content-type": "application/json" } : {}), ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

export function setKey(key: string): void {
  write(KEY, key.trim() || null);
}

async function ask(path: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers: headers(body !== undefined),
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      ...(signal ? { signal } : {}),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("The server can't be reached", 0, "unreachable");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response: Response): Promise<ApiError> {
  const wait = Number(response.headers.get("retry-after"));
  let told: { message?: string; code?: string; param?: string | null } = {};
  try {
    told = ((await response.json()) as { error?: typeof told }).error ?? {};
  } catch {
    // not our error object: a proxy's page, perhaps
  }
  const message = told.message ?? `The server answered with status ${response.status}`;
  return new ApiError(message, response.status, told.code ?? "", wait > 0 ? wait : null, told.param ?? null);
}

/** What a model is; one that is named is loaded for it, another is told of as it is. */
export async function info(model?: string): Promise<Info> {
  return (await (await ask(`/page/api/info${model ? `?model=${encodeURIComponent(model)}` : ""}`)).json()) as Info;
}

export type Phase = "ready" | "loading" | "away";

/** How a model is now. */
export async function phase(model: string): Promise<Phase> {
  const { models } = (await (await ask("/page/api/models")).json()) as { models: { name: string; phase: Phase }[] };
  return models.find((each) => each.name === model)?.phase ?? "away";
}

export async function alive(): Promise<boolean> {
  try {
    return (await fetch("/livez")).ok;
  } catch {
    return false;
  }
}

/** A conversation as it is asked about. */
export interface Asked {
  messages: WireMessage[];
  images: "all" | "last";
  template: string | null;
  /** Null where the server has but one. */
  model: string | null;
}

export async function count(asked: Asked & { max_tokens: number | null }, signal: AbortSignal): Promise<Count> {
  return (await (await ask("/page/api/count", slim(asked), signal)).json()) as Count;
}

export async function preview(image: string, model: string | null): Promise<Preview> {
  return (await (await ask("/page/api/preview", slim({ image, model }))).json()) as Preview;
}

export async function explain(asked: Asked): Promise<Look> {
  return (await (await ask("/page/api/explain", slim(asked))).json()) as Look;
}

function slim(asked: object): object {
  return Object.fromEntries(Object.entries(asked).filter(([, value]) => value !== null));
}

interface Event {
  model?: string;
  choices?: { delta?: { content?: string }; finish_reason?: string | null }[];
  usage?: {
    prompt_tokens: number;
    completion_tokens: number;
    prompt_tokens_details?: { image_tokens?: number };
  } | null;
  trifocal?: { image_positions?: number[]; left_out?: string[]; timings?: Timings };
  error?: { message?: string; code?: string };
}

/** Streams an answer: `grow` gets each piece; the result tells how it ended. */
export async function chat(
  asked: Asked & { sampling: Sampling },
  grow: (text: string) => void,
  signal: AbortSignal,
): Promise<Outcome> {
  const started = performance.now();
  const { stop, ...sampling } = asked.sampling;
  const body = slim({
    model: asked.model,
    messages: asked.messages,
    stream: true,
    stream_options: { include_usage: true },
    ...slim(sampling),
    ...(stop.length ? { stop } : {}),
    trifocal: slim({ images: asked.images, template: asked.template }),
  });
  const response = await ask("/v1/chat/completions", body, signal);
  const outcome: Outcome = {
    model: "",
    finish: "",
    promptTokens: 0,
    imageTokens: 0,
    completionTokens: 0,
    positions: [],
    leftOut: [],
    timings: {},
    firstToken: 0,
    total: 0,
  };
  for await (const event of events(response, signal)) {
    if (event.error) throw new ApiError(event.error.message ?? "", 500, event.error.code ?? "");
    const choice = event.choices?.[0];
    const piece = choice?.delta?.content ?? "";
    if (piece) {
      outcome.firstToken ||= (performance.now() - started) / 1000;
      grow(piece);
    }
    outcome.model = event.model ?? outcome.model;
    outcome.finish = choice?.finish_reason ?? outcome.finish;
    outcome.promptTokens = event.usage?.prompt_tokens ?? outcome.promptTokens;
    outcome.completionTokens = event.usage?.completion_tokens ?? outcome.completionTokens;
    outcome.imageTokens = event.usage?.prompt_tokens_details?.image_tokens ?? outcome.imageTokens;
    outcome.positions = event.trifocal?.image_positions ?? outcome.positions;
    outcome.leftOut = event.trifocal?.left_out ?? outcome.leftOut;
    outcome.timings = event.trifocal?.timings ?? outcome.timings;
  }
  if (!outcome.finish) throw new ApiError("The connection ended in the middle of the answer", 0, "unreachable");
  outcome.total = (performance.now() - started) / 1000;
  return outcome;
}

async function* events(response: Response, signal: AbortSignal): AsyncGenerator<Event> {
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      held += value;
      const parts = held.split(/\r?\n\r?\n/);
      held = parts.pop() ?? "";
      for (const part of parts) {
        const data = part
          .split(/\r?\n/)
          .filter((line) => line.startsWith("data:"))
          .map((line) => line.slice(5).trimStart())
          .join("\n");
        if (data && data !== "[DONE]") yield JSON.parse(data) as Event;
      }
    }
  } catch (error) {
    if (signal.aborted) throw error;
    throw error instanceof ApiError ? error : new ApiError("The connection ended in the middle of the answer", 0, "unreachable");
  } finally {
    reader.cancel().catch(() => undefined);
  }
}
