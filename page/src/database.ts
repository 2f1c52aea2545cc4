// Where the browser keeps things: four tables, read and changed in transactions. IndexedDB, or memory where there is none.

import { soundConversation, soundDraft } from "./sound";
import type { Draft, Picture, Summary, Turn } from "./types";

const NAME = "trifocal";
const VERSION = 2; // 1 kept every conversation in one record

/** A conversation's record: all but its turns, whose order it holds. */
export type ConversationRecord = Summary & { order: string[] };
export type TurnRecord = Turn & { conversation: string };
export type DraftRecord = Draft & { conversation: string };

type Key = string | [string, string];

export interface Table<T> {
  get(key: Key): Promise<T | undefined>;
  /** All of them, or those of one conversation. */
  all(conversation?: string): Promise<T[]>;
  put(value: T): Promise<void>;
  remove(key: Key): Promise<void>;
}

export interface Tables {
  conversations: Table<ConversationRecord>;
  turns: Table<TurnRecord>;
  drafts: Table<DraftRecord>;
  pictures: Table<Picture>;
}

export interface Database {
  /** Whether what is kept outlives the page. */
  readonly lasting: boolean;
  /** Reads, and where `write` is set changes, in one transaction: all of it happens, or nothing. Only tables are awaited in it. */
  transact<T>(write: boolean, act: (tables: Tables) => Promise<T>): Promise<T>;
}

const KEYS: Record<keyof Tables, string | string[]> = {
  conversations: "id",
  turns: ["conversation", "id"],
  drafts: "conversation",
  pictures: "id",
};
const NAMES = Object.keys(KEYS) as (keyof Tables)[];

/** The browser's database; `outdated` is called when a newer page wants to change its shape. */
export async function openDatabase(outdated: () => void): Promise<Database> {
  try {
    const asked = indexedDB.open(NAME, VERSION);
    asked.onblocked = outdated;
    asked.onupgradeneeded = ({ oldVersion }) => void upgrade(asked.result, asked.transaction!, oldVersion);
    const database = await done(asked);
    database.onversionchange = () => {
      database.close();
      outdated();
    };
    return new Kept(database);
  } catch {
    return new Held();
  }
}

async function upgrade(database: IDBDatabase, transaction: IDBTransaction, from: number): Promise<void> {
  for (const name of NAMES) {
    if (!database.objectStoreNames.contains(name)) database.createObjectStore(name, { keyPath: KEYS[name] });
  }
  if (from !== 1) return;
  const tables = tablesOf(transaction);
  for (const old of await done(transaction.objectStore("conversations").getAll() as IDBRequest<{ id: string; draft?: unknown }[]>)) {
    const conversation = soundConversation(old);
    if (!conversation) continue; // stays as it is, and is not shown
    const { turns, ...rest } = conversation;
    await tables.conversations.put({ ...rest, order: turns.map((turn) => turn.id) });
    for (const turn of turns) await tables.turns.put({ ...turn, conversation: conversation.id });
    await tables.drafts.put({ ...soundDraft(old.draft), conversation: conversation.id });
  }
}

function done<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function tablesOf(transaction: IDBTransaction): Tables {
  return Object.fromEntries(NAMES.map((name) => [name, new KeptTable(transaction.objectStore(name))])) as unknown as Tables;
}

class KeptTable<T> implements Table<T> {
  constructor(private readonly store: IDBObjectStore) {}

  get(key: Key): Promise<T | undefined> {
    return done(this.store.get(key) as IDBRequest<T | undefined>);
  }

  all(conversation?: string): Promise<T[]> {
    const range = conversation === undefined ? null : IDBKeyRange.bound([conversation], [conversation, []]);
    return done(this.store.getAll(range) as IDBRequest<T[]>);
  }

  async put(value: T): Promise<void> {
    await done(this.store.put(value));
  }

  async remove(key: Key): Promise<void> {
    await done(this.store.delete(key));
  }
}

class Kept implements Database {
  readonly lasting = true;

  constructor(private readonly database: IDBDatabase) {}

  async transact<T>(write: boolean, act: (tables: Tables) => Promise<T>): Promise<T> {
    const transaction = this.database.transaction(NAMES, write ? "readwrite" : "readonly");
    const ended = new Promise<void>((resolve, reject) => {
      transaction.oncomplete = () => resolve();
      transaction.onabort = () => reject(transaction.error ?? new Error("the browser gave the change up"));
    });
    ended.catch(() => undefined); // it is awaited below, or what broke it is thrown
    try {
      const found = await act(tablesOf(transaction));
      await ended;
      return found;
    } catch (error) {
      try {
        transaction.abort();
      } catch {
        // it is over already
      }
      throw error;
    }
  }
}

class HeldTable<T> implements Table<T> {
  private readonly values = new Map<string, T>();

  constructor(private readonly path: string | string[]) {}

  get(key: Key): Promise<T | undefined> {
    return Promise.resolve(structuredClone(this.values.get(JSON.stringify(key))));
  }

  all(conversation?: string): Promise<T[]> {
    const all = [...this.values.values()] as (T & { conversation?: string })[];
    return Promise.resolve(structuredClone(all.filter((each) => conversation === undefined || each.conversation === conversation)));
  }

  put(value: T): Promise<void> {
    const at = value as Record<string, string>;
    const key = typeof this.path === "string" ? at[this.path] : this.path.map((name) => at[name]);
    this.values.set(JSON.stringify(key), structuredClone(value));
    return Promise.resolve();
  }

  remove(key: Key): Promise<void> {
    this.values.delete(JSON.stringify(key));
    return Promise.resolve();
  }
}

/** Memory of this shape: where the browser keeps nothing, and for what it has no room for. */
export class Held implements Database {
  readonly lasting = false;
  private readonly tables = Object.fromEntries(NAMES.map((name) => [name, new HeldTable(KEYS[name])])) as unknown as Tables;
  private last: Promise<unknown> = Promise.resolve();

  transact<T>(_write: boolean, act: (tables: Tables) => Promise<T>): Promise<T> {
    const mine = this.last.then(() => act(this.tables));
    this.last = mine.catch(() => undefined); // one after the other
    return mine;
  }
}
