// What a conversation is: turns of pieces, a piece being text or a picture that stands at its place in the text.

export interface Picture {
  id: string;
  name: string;
  type: string;
  width: number;
  height: number;
  blob: Blob;
  /** When it came to this browser; one that nothing mentions is let go of only when it is old. */
  added: number;
  /** What was done to it on adding, in words; empty where it is as it was given. */
  note: string;
}

export type Piece = { text: string } | { picture: string };

export interface Timings {
  [step: string]: number;
}

/** How an answer ended and what it cost, as the server told it. */
export interface Outcome {
  /** Who answered. */
  model: string;
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
  at: number;
  pieces: Piece[];
  /** Ids of pictures that the model is not shown any more. */
  leftOut: string[];
}

export interface Answer {
  id: string;
  text: string;
  outcome: Outcome | null;
  stopped: string | null;
  problem: Problem | null;
  /** The tab that writes it now; null when nobody does. */
  writer: string | null;
  /** It is asked for as soon as the server is back. */
  waiting: boolean;
  /** Somebody changed the model's words. */
  edited: boolean;
  at: number;
}

export interface AssistantTurn {
  role: "assistant";
  id: string;
  /** All answers that were made to the question; regenerating adds one. */
  answers: Answer[];
  shown: number;
}

export type Turn = UserTurn | AssistantTurn;

/** What is being written: pieces, and the question that they will replace, with what stood in the field before. */
export interface Draft {
  pieces: Piece[];
  editing: { turn: string; before: Piece[] } | null;
}

export interface Conversation {
  id: string;
  title: string;
  named: boolean;
  updated: number;
  turns: Turn[];
  /** Its own settings; null where it takes those of every new chat. */
  settings: Settings | null;
  /** The model that it asks, where the server offers several; null where it asks that of every new chat. */
  model: string | null;
  /** What it was imported as, so that the same file is not everything twice. */
  origin: string | null;
}

/** A conversation without its turns: what a list shows. */
export type Summary = Omit<Conversation, "turns">;

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
  /** All that the server offers. */
  models: string[];
  family: string;
  bundled: boolean;
  /** Null where another server has the model and does not tell. */
  context: number | null;
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
  limits: Limits;
  samples: Sample[];
  needs: string[];
}

export interface Limits {
  image_bytes: number;
  images: number;
  body_bytes: number;
  max_text: number;
  aspect: number;
  /** The long side in pixels beyond which the model can make nothing of a picture. */
  useful_side: number;
  formats: string[];
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

export function freshConversation(settings: Settings | null = null): Conversation {
  return { id: newId(), title: "", named: false, updated: Date.now(), turns: [], settings, model: null, origin: null };
}

export function freshAnswer(writer: string | null): Answer {
  return { id: newId(), text: "", outcome: null, stopped: null, problem: null, writer, waiting: false, edited: false, at: Date.now() };
}

export function picturesOf(pieces: readonly Piece[]): string[] {
  return pieces.flatMap((piece) => ("picture" in piece ? [piece.picture] : []));
}

/** All pictures that stand in questions. */
export function picturesIn({ turns }: { turns: readonly Turn[] }): string[] {
  return turns.flatMap((turn) => (turn.role === "user" ? picturesOf(turn.pieces) : []));
}

/** The pictures of a question that are shown to the model. */
export function keptPictures(turn: UserTurn): string[] {
  return picturesOf(turn.pieces).filter((id) => !turn.leftOut.includes(id));
}

export function textOf(pieces: readonly Piece[]): string {
  return pieces.map((piece) => ("text" in piece ? piece.text : "")).join("");
}

export function answerOf(turn: AssistantTurn): Answer {
  return turn.answers[turn.shown] ?? turn.answers.at(-1) ?? { ...freshAnswer(null), id: "" };
}

/** The pieces without white space at the two ends. */
export function trimmed(pieces: readonly Piece[]): Piece[] {
  const found = pieces.map((piece) => ({ ...piece }));
  const first = found[0];
  const last = found.at(-1);
  if (first && "text" in first) first.text = first.text.trimStart();
  if (last && "text" in last) last.text = last.text.trimEnd();
  return found.filter((piece) => "picture" in piece || piece.text);
}

export function titleOf(turn: UserTurn): string {
  const text = textOf(turn.pieces).trim().replace(/\s+/g, " ");
  if (!text) return "A picture";
  return text.length > 60 ? `${text.slice(0, 58).trimEnd()}…` : text;
}
