// What the browser keeps: conversations and pictures in IndexedDB, small choices in localStorage.

import type { Conversation, Picture, Settings } from "./types";
import { PLAIN } from "./types";

const NAME = "trifocal";
const VERSION = 1;

function done<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** The browser's database. Where the browser gives none (a private window), everything lasts as long as the page. */
export class Store {
  readonly pictures = new Map<string, Picture>();
  private readonly urls = new Map<string, string>();
  private readonly held = new Map<string, Conversation>();

  private constructor(private readonly database: IDBDatabase | null) {}

  static async open(): Promise<Store> {
    try {
      const asked = indexedDB.open(NAME, VERSION);
      asked.onupgradeneeded = () => {
        asked.result.createObjectStore("conversations", { keyPath: "id" });
        asked.result.createObjectStore("pictures", { keyPath: "id" });
      };
      const store = new Store(await done(asked));
      for (const picture of await store.all<Picture>("pictures")) store.pictures.set(picture.id, picture);
      return store;
    } catch {
      return new Store(null);
    }
  }

  get lasting(): boolean {
    return this.database !== null;
  }

  async conversations(): Promise<Conversation[]> {
    const found = this.database ? await this.all<Conversation>("conversations") : [...this.held.values()];
    return found.sort((one, other) => other.updated - one.updated);
  }

  async save(conversation: Conversation): Promise<void> {
    this.held.set(conversation.id, conversation);
    if (!this.database) return;
    await done(this.table("conversations", "readwrite").put(structuredClone(conversation)));
  }

  async remove(id: string): Promise<void> {
    this.held.delete(id);
    if (this.database) await done(this.table("conversations", "readwrite").delete(id));
  }

  async keep(picture: Picture): Promise<void> {
    this.pictures.set(picture.id, picture);
    if (this.database) await done(this.table("pictures", "readwrite").put(picture));
  }

  /** Lets go of pictures that no conversation mentions. */
  async tidy(mentioned: Set<string>): Promise<void> {
    for (const id of [...this.pictures.keys()].filter((each) => !mentioned.has(each))) {
      this.pictures.delete(id);
      const url = this.urls.get(id);
      if (url) URL.revokeObjectURL(url);
      this.urls.delete(id);
      if (this.database) await done(this.table("pictures", "readwrite").delete(id));
    }
  }

  /** An address of a picture for an `img`; the same one every time. */
  url(id: string): string {
    const picture = this.pictures.get(id);
    if (!picture) return "";
    const known = this.urls.get(id) ?? URL.createObjectURL(picture.blob);
    this.urls.set(id, known);
    return known;
  }

  private table(name: string, mode: IDBTransactionMode): IDBObjectStore {
    if (!this.database) throw new Error("no database");
    return this.database.transaction(name, mode).objectStore(name);
  }

  private all<T>(name: string): Promise<T[]> {
    return done(this.table(name, "readonly").getAll()) as Promise<T[]>;
  }
}

const SETTINGS = "trifocal.settings";

export function loadSettings(): Settings {
  const plain: Settings = { sampling: { ...PLAIN }, system: null, template: null, allImages: true, own: [] };
  try {
    const kept = JSON.parse(localStorage.getItem(SETTINGS) ?? "{}") as Partial<Settings>;
    return { ...plain, ...kept, sampling: { ...PLAIN, ...kept.sampling } };
  } catch {
    return plain;
  }
}

export function saveSettings(settings: Settings): void {
  write(SETTINGS, JSON.stringify(settings));
}

export function read(name: string): string | null {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

export function write(name: string, value: string | null): void {
  try {
    if (value === null) localStorage.removeItem(name);
    else localStorage.setItem(name, value);
  } catch {
    // a private window: the choice lasts as long as the page
  }
}
