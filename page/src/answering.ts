// Answers as they are asked for and grow: in any chat, open or not, by the tab that asked; and those that wait for the server.

import * as api from "./api";
import { ApiError } from "./api";
import type { Asked } from "./api";
import { megabytes } from "./dom";
import { CLOSED } from "./sound";
import type { Store } from "./store";
import type { Tabs } from "./tabs";
import type { Answer, AssistantTurn, Conversation, Info, Problem, Sampling, Settings, Turn } from "./types";
import { answerOf, freshAnswer, keptPictures } from "./types";
import { MissingPicture, bytesOf, messagesOf, whole } from "./wire";
import type { Source } from "./wire";

const LOOK_EVERY = 1000; // milliseconds between two looks at whether the model that is asked is there
const SAVE_EVERY = 600; // milliseconds between two savings of an answer that grows

/** An answer that this tab is writing. */
export interface Run {
  conversation: string;
  turn: string;
  text: string;
  stop: AbortController;
}

export interface AnsweringEvents {
  grown: (run: Run) => void;
  /** A conversation changed: an answer began, ended or failed. */
  changed: (conversation: Conversation) => void;
  unreachable: () => void;
  keyNeeded: () => void;
  info: () => Info | null;
  settings: (conversation: Conversation) => Settings;
  /** The model that a conversation asks; null where the server has but one. */
  model: (conversation: Conversation) => string | null;
  /** An answer waits for its model to be loaded. */
  loading: (run: Run, model: string) => void;
}

export class Answering {
  readonly runs = new Map<string, Run>();

  constructor(
    private readonly store: Store,
    private readonly tabs: Tabs,
    private readonly on: AnsweringEvents,
  ) {}

  /** The run that writes in a conversation. */
  in(conversation: string): Run | undefined {
    return [...this.runs.values()].find((run) => run.conversation === conversation);
  }

  stop(conversation: string): void {
    this.in(conversation)?.stop.abort();
  }

  /** Asks for an answer to what stands before a turn, or for more of the one that stands there. */
  async ask(conversation: string, turn: string, more = false): Promise<void> {
    if (this.runs.has(turn)) return;
    const begun = await this.store.edit(conversation, (found) => begin(found, turn, more, this.tabs.own));
    const answer = begun && unfinished(begun, turn);
    if (!begun || answer?.writer !== this.tabs.own) return; // deleted, or another tab was first
    const run: Run = { conversation, turn, text: answer.text, stop: new AbortController() };
    this.runs.set(turn, run);
    this.on.changed(begun);
    const end = await this.stream(begun, run, more).catch((error: unknown) => this.failed(run, error));
    this.runs.delete(turn);
    const ended = await this.keep(run, end);
    if (ended) this.on.changed(ended);
  }

  /** Asks what waits for the server, in whatever chat it stands. */
  async askWaiting(): Promise<void> {
    for (const conversation of await this.store.all()) {
      for (const turn of conversation.turns) {
        if (turn.role === "assistant" && answerOf(turn).waiting) void this.ask(conversation.id, turn.id);
      }
    }
  }

  /** Ends the answers whose tab is gone. */
  async mend(): Promise<void> {
    for (const conversation of await this.store.all()) {
      for (const turn of conversation.turns) {
        const writer = turn.role === "assistant" ? turn.answers.find((answer) => answer.writer)?.writer : null;
        if (!writer || writer === this.tabs.own || (await this.tabs.isThere(writer))) continue;
        const mended = await this.store.edit(conversation.id, (found) => {
          for (const answer of answersOf(found, turn.id)) {
            if (answer.writer === writer) Object.assign(answer, { writer: null, stopped: answer.waiting ? null : CLOSED });
          }
        });
        if (mended) this.on.changed(mended);
      }
    }
  }

  /** What the server is asked about some turns of a conversation. */
  async asked(conversation: Conversation, turns: readonly Turn[], source: Source = whole): Promise<Asked> {
    const { system, template, allImages } = this.on.settings(conversation);
    const info = this.on.info();
    const place = info?.places?.[template ?? info.template] ?? "first";
    await this.store.fetch(turns.flatMap((turn) => (turn.role === "user" ? keptPictures(turn) : [])));
    return { messages: await messagesOf(turns, system, place, this.store, source), images: allImages ? "all" : "last", template, model: this.on.model(conversation) };
  }

  private async stream(conversation: Conversation, run: Run, more: boolean): Promise<Partial<Answer>> {
    const at = conversation.turns.findIndex((turn) => turn.id === run.turn);
    const turns = conversation.turns.slice(0, more ? at + 1 : at);
    const asked = await this.asked(conversation, turns);
    const problem = tooMuch(turns, this.store, this.on.info());
    if (problem) return { problem };
    let saved = performance.now();
    const grow = (piece: string): void => {
      run.text += piece;
      this.on.grown(run);
      if (performance.now() - saved < SAVE_EVERY) return;
      saved = performance.now();
      void this.keep(run, {}).then((kept) => kept ?? run.stop.abort()); // its chat is gone
    };
    const looking = setInterval(() => void this.lookForModel(run, asked.model), LOOK_EVERY);
    try {
      const sampling = seeded(this.on.settings(conversation).sampling);
      return { outcome: await api.chat({ ...asked, sampling }, grow, run.stop.signal), edited: false };
    } catch (error) {
      throw error instanceof ApiError ? named(error, asked, turns, this.store) : error;
    } finally {
      clearInterval(looking);
    }
  }

  private async lookForModel(run: Run, model: string | null): Promise<void> {
    if (model === null || run.text) return;
    const phase = await api.phase(model).catch(() => "ready");
    if (phase !== "ready" && !run.text && this.runs.get(run.turn) === run) this.on.loading(run, model);
  }

  private keep(run: Run, end: Partial<Answer>): Promise<Conversation | null> {
    const ended = Object.keys(end).length > 0;
    return this.store.edit(run.conversation, (found) => {
      const answer = answersOf(found, run.turn).find((each) => each.writer === this.tabs.own);
      if (!answer) return;
      Object.assign(answer, { text: run.text, ...end, ...(ended ? { writer: null, at: Date.now() } : {}) });
      if (ended) found.updated = Date.now();
    });
  }

  private failed(run: Run, error: unknown): Partial<Answer> {
    if (run.stop.signal.aborted) return { stopped: "You stopped it here." };
    if (error instanceof MissingPicture) {
      return { problem: { message: error.message, advice: "Leave it out with the eye on it, or add it again and ask anew.", retry: null } };
    }
    if (!(error instanceof ApiError)) return { problem: { message: String(error), advice: "", retry: null } };
    if (error.code === "invalid_api_key") {
      this.on.keyNeeded();
      return { waiting: !run.text, stopped: run.text ? "The server wants a key." : null };
    }
    if (error.code !== "unreachable") return { problem: error.problem };
    this.on.unreachable();
    return run.text ? { stopped: "The connection ended here. “Go on” asks for the rest." } : { waiting: true };
  }
}

function answersOf(conversation: Conversation, id: string): Answer[] {
  const turn = conversation.turns.find((each) => each.id === id);
  return turn?.role === "assistant" ? turn.answers : [];
}

function unfinished(conversation: Conversation, id: string): Answer | undefined {
  return answersOf(conversation, id).find((answer) => answer.writer);
}

/** Gives a tab the pen, unless somebody has it: for a new answer, or for more of the one that is shown. */
export function begin(conversation: Conversation, id: string, more: boolean, tab: string): void {
  const turn = conversation.turns.find((each): each is AssistantTurn => each.id === id && each.role === "assistant");
  if (!turn || turn.answers.some((answer) => answer.writer)) return;
  if (more) {
    Object.assign(answerOf(turn), { writer: tab, stopped: null, problem: null });
    return;
  }
  turn.answers = [...turn.answers.filter((answer) => answer.text), freshAnswer(tab)]; // failures without a word make room
  turn.shown = turn.answers.length - 1;
}

function seeded(sampling: Sampling): Sampling {
  const drawn = sampling.temperature > 0 && sampling.seed === null;
  return drawn ? { ...sampling, seed: Math.floor(Math.random() * 2 ** 31) } : sampling;
}

/** What is wrong with the size of a request, before it is sent. */
export function tooMuch(turns: readonly Turn[], store: Store, info: Info | null): Problem | null {
  if (!info) return null;
  const pictures = turns.flatMap((turn) => (turn.role === "user" ? keptPictures(turn) : [])).flatMap((id) => store.picture(id) ?? []);
  const { images, body_bytes: most } = info.limits;
  const advice = "Leave earlier pictures out with the eye on each, or start a new chat.";
  if (pictures.length > images) return { message: `This chat has ${pictures.length} pictures; this server takes ${images} at once.`, advice, retry: null };
  const bytes = pictures.reduce((sum, picture) => sum + bytesOf(picture), 10_000);
  if (bytes < most) return null;
  return { message: `The pictures of this chat are ${megabytes(bytes)} together; this server takes ${megabytes(most)} at once.`, advice, retry: null };
}

/** The error in which a picture is called by its own name, not by its place in the request. */
function named(error: ApiError, asked: Asked, turns: readonly Turn[], store: Store): ApiError {
  const place = /^messages\[(\d+)\]\.content\[(\d+)\]/.exec(error.about ?? "");
  if (!place || !error.about) return error;
  const message = asked.messages[Number(place[1])];
  const turn = turns[Number(place[1]) - (asked.messages[0]?.role === "system" ? 1 : 0)];
  const before = (Array.isArray(message?.content) ? message.content : []).slice(0, Number(place[2])).filter((part) => part.type === "image_url");
  const id = turn?.role === "user" ? keptPictures(turn)[before.length] : undefined;
  const name = (id && store.picture(id)?.name) || "a picture";
  return new ApiError(error.message.replaceAll(error.about, name), error.status, error.code, error.retry);
}
