// What a conversation is: turns of pieces, a piece being text or a picture that stands at its place in the text.

export interface Picture {
  id: string;
  name: string;
  type: string;
  width: number;
  height: number;
  blob: Blob;
}

export type Piece = { text: string } | { picture: string };

export interface Timings {
  [step: string]: number;
}

/** How an answer ended and what it cost, as the server told it. */
export interface Outcome {
  finish: string;
  promptTokens: number;
  imageTokens: number;
  completionTokens: number;
  positions: number[];
  leftOut: string[];
  timings: Timings;
  firstToken: number;
  total: number;
}

export interface Problem {
  message: string;
  advice: string;
  retry: number | null;
}

export interface UserTurn {
  role: "user";
  id: string;
  pieces: Piece[];
  /** Ids of pictures that the model is not shown any more. */
  leftOut: string[];
}

export interface Answer {
  text: string;
  outcome: Outcome | null;
  stopped: string | null;
  problem: Problem | null;
}

export interface AssistantTurn {
  role: "assistant";
  id: string;
  /** All answers that were made to the question; regenerating adds one. */
  answers: Answer[];
  shown: number;
}

export type Turn = UserTurn | AssistantTurn;

export interface Draft {
  pieces: Piece[];
}

export interface Conversation {
  id: string;
  title: string;
  named: boolean;
  updated: number;
  turns: Turn[];
  draft: Draft;
}

export interface Sampling {
  temperature: number;
  top_p: number;
  top_k: number;
  min_p: number;
  max_tokens: number | null;
  repetition_penalty: number;
  seed: number | null;
  stop: string[];
}

export interface Preset {
  name: string;
  sampling: Sampling;
}

export interface Settings {
  sampling: Sampling;
  system: string | null;
  template: string | null;
  allImages: boolean;
  own: Preset[];
}

export interface PartInfo {
  part: "tower" | "projector" | "language";
  what: string;
  device: string;
  dtype: string;
  bytes: number;
}

export interface Sample {
  title: string;
  picture: string;
  question: string;
}

export interface Info {
  name: string;
  family: string;
  bundled: boolean;
  context: number;
  template: string;
  templates: string[];
  system: string;
  systems?: Record<string, string>;
  places?: Record<string, "first" | "last">;
  images: "all" | "last" | number;
  fit: string;
  fit_words: string;
  parts: PartInfo[];
  engine: { name: string; explains: boolean; explains_not: string | null };
  limits: { image_bytes: number; images: number; body_bytes: number; max_text: number; formats: string[] };
  samples: Sample[];
  needs: string[];
}

export interface CountedTurn {
  text: number;
  pictures: number[];
  left_out: boolean;
  pictures_left_out: boolean[];
}

export interface Count {
  context: number;
  answer: number;
  text: number;
  pictures: number;
  total: number;
  messages: CountedTurn[];
  left_out: string[];
  next: string | null;
  fits: boolean;
}

export type Box = [number, number, number, number];

export interface Preview {
  size: [number, number];
  fit: string;
  fit_words: string;
  positions: number;
  tiles: { image: string; title: string; box: Box }[];
  seen: Box;
}

export interface LookedWord {
  text: string;
  start: number;
  end: number;
  images: { index: number; share: number; grid: number[][] }[];
}

export interface Look {
  words: LookedWord[];
  images: { index: number; rows: number; columns: number; box: Box; words: { word: number; weight: number }[] }[];
}

export const PLAIN: Sampling = {
  temperature: 0,
  top_p: 1,
  top_k: 0,
  min_p: 0,
  max_tokens: null,
  repetition_penalty: 1,
  seed: null,
  stop: [],
};

export const PRESETS: Preset[] = [
  { name: "Precise", sampling: PLAIN },
  { name: "Balanced", sampling: { ...PLAIN, temperature: 0.5, top_p: 0.9, top_k: 40 } },
  { name: "Creative", sampling: { ...PLAIN, temperature: 1, top_p: 0.95, min_p: 0.05 } },
];

export function newId(): string {
  return crypto.getRandomValues(new Uint32Array(3)).reduce((id, word) => id + word.toString(36), "");
}

export function picturesOf(pieces: readonly Piece[]): string[] {
  return pieces.flatMap((piece) => ("picture" in piece ? [piece.picture] : []));
}

export function textOf(pieces: readonly Piece[]): string {
  return pieces.map((piece) => ("text" in piece ? piece.text : "")).join("");
}

export function answerOf(turn: AssistantTurn): Answer {
  const answer = turn.answers[turn.shown] ?? turn.answers.at(-1);
  return answer ?? { text: "", outcome: null, stopped: null, problem: null };
}
