// The one truth about conversations: kept in the browser's database, changed turn by turn, told to all tabs.

import type { ConversationRecord, Database, Tables } from "./database";
import { Held } from "./database";
import type { Tabs } from "./tabs";
import type { Conversation, Draft, Picture, Summary, Turn } from "./types";
import { picturesIn, picturesOf, textOf } from "./types";

const OLD = 24 * 3600 * 1000; // pictures that nothing mentions are kept so long: another tab may be about to use them
const EMPTY: Draft = { pieces: [], editing: null };

export class Store {
  /** The pictures that were looked up so far. */
  private readonly known = new Map<string, Picture>();
  private readonly urls = new Map<string, string>();
  private readonly overflow = new Held(); // what the browser had no room for lasts as long as the page
  private readonly overflowed = new Set<string>();
  private readonly unkept = new Set<string>(); // pictures that the browser had no room for

  constructor(
    private readonly database: Database,
    private readonly tabs: Tabs,
    /** The browser has no room; or, with `again`, it has some again, and everything is kept. */
    private readonly full: (again?: boolean) => void,
  ) {}

  get lasting(): boolean {
    return this.database.lasting;
  }

  /** Whether something here ends with the page, since the browser had no room for it. */
  get holds(): boolean {
    return this.overflowed.size > 0 || this.unkept.size > 0;
  }

  /** All conversations without their turns, the newest first. */
  async list(): Promise<Summary[]> {
    const read = (database: Database): Promise<ConversationRecord[]> => database.transact(false, (tables) => tables.conversations.all());
    const held = await read(this.overflow);
    const here = new Set(held.map((each) => each.id)); // some of which may move to the database now
    const kept = (await read(this.database)).filter((each) => Array.isArray(each.order) && !here.has(each.id) && !this.overflowed.has(each.id));
    return [...held, ...kept].sort((one, other) => other.updated - one.updated);
  }

  async all(): Promise<Conversation[]> {
    const found = await Promise.all((await this.list()).map((each) => this.load(each.id)));
    return found.filter((each) => each !== null);
  }

  async load(id: string): Promise<Conversation | null> {
    return this.where(id).transact(false, (tables) => loaded(tables, id));
  }

  /** Changes a conversation as it is now, whoever changed it before; `fresh` is used where there is none of this id. Null where it is gone. */
  async edit(id: string, act: (conversation: Conversation) => void, fresh: Conversation | null = null): Promise<Conversation | null> {
    const edited = await this.write(id, async (tables) => {
      const known = await loaded(tables, id);
      const found = known ?? structuredClone(fresh);
      if (!found) return null;
      const before = new Map(known?.turns.map((turn) => [turn.id, JSON.stringify(turn)]));
      act(found);
      await keepChanged(tables, found, before);
      return found;
    });
    if (edited) this.tabs.tell({ what: "changed", conversation: id });
    return edited;
  }

  /** Takes a conversation away; what is given back can be kept again with `restore`. */
  async remove(id: string): Promise<{ conversation: Conversation; draft: Draft } | null> {
    const conversation = await this.load(id);
    const draft = await this.draft(id);
    await this.fetch(conversation ? picturesIn(conversation) : []);
    await this.write(id, (tables) => erase(tables, id));
    this.tabs.tell({ what: "removed", conversation: id });
    if (this.holds) await this.makeUp();
    return conversation && { conversation, draft };
  }

  async restore(conversation: Conversation, draft: Draft = EMPTY): Promise<void> {
    for (const id of picturesIn(conversation)) {
      const picture = this.known.get(id);
      const kept = await this.database.transact(false, (tables) => tables.pictures.get(id));
      if (picture && !kept) await this.keep(picture); // room was made in its place
    }
    await this.edit(conversation.id, () => undefined, conversation);
    await this.keepDraft(conversation, draft);
  }

  async draft(id: string): Promise<Draft> {
    const found = await this.where(id).transact(false, (tables) => tables.drafts.get(id));
    return found ? { pieces: found.pieces, editing: found.editing } : EMPTY;
  }

  async keepDraft(conversation: Conversation, draft: Draft): Promise<void> {
    await this.editDraft(conversation, () => draft);
  }

  /** Changes what is being written; a conversation that is only being written comes to be by that. Whether it is kept. */
  async editDraft(conversation: Conversation, act: (before: Draft) => Draft): Promise<boolean> {
    const made = await this.write(conversation.id, async (tables) => {
      const known = await tables.conversations.get(conversation.id);
      const draft = act((await tables.drafts.get(conversation.id)) ?? EMPTY);
      if (!known && (!draft.pieces.length || conversation.turns.length)) return null; // nothing yet, or deleted elsewhere
      if (!known) await keepChanged(tables, conversation, new Map());
      await tables.drafts.put({ ...draft, conversation: conversation.id });
      return !known;
    });
    if (made === null) return false;
    this.tabs.tell({ what: "draft", conversation: conversation.id });
    if (made) this.tabs.tell({ what: "changed", conversation: conversation.id });
    return true;
  }

  /** The ids of conversations that have all these words, in the title or in a turn. */
  async search(words: string): Promise<Set<string>> {
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    const found = (await this.all()).filter(({ title, turns }) => {
      const said = [title, ...turns.map(saidIn)].join("\n").toLowerCase();
      return wanted.every((word) => said.includes(word));
    });
    return new Set(found.map((each) => each.id));
  }

  // ------------------------------------------------------------------ pictures

  /** A picture; it was looked up before, by `fetch`. */
  picture(id: string): Picture | undefined {
    return this.known.get(id);
  }

  /** Looks up the pictures of these ids, so that they can be shown and sent. */
  async fetch(ids: readonly string[]): Promise<void> {
    const missing = ids.filter((id) => !this.known.has(id));
    if (!missing.length) return;
    const found = await this.database.transact(false, (tables) => Promise.all(missing.map((id) => tables.pictures.get(id))));
    for (const picture of found) if (picture) this.known.set(picture.id, picture);
  }

  async keep(picture: Picture): Promise<void> {
    const url = this.urls.get(picture.id);
    if (url) URL.revokeObjectURL(url);
    this.urls.delete(picture.id);
    this.known.set(picture.id, picture);
    await this.put(picture).catch(async () => {
      await this.tidy();
      await this.put(picture).catch(() => {
        this.unkept.add(picture.id);
        this.full();
      });
    });
  }

  private async put(picture: Picture): Promise<void> {
    await this.database.transact(true, (tables) => tables.pictures.put(picture));
    this.unkept.delete(picture.id);
  }

  /** An address of a picture for an `img`; the same one every time, empty where it is missing. */
  url(id: string): string {
    const picture = this.known.get(id);
    if (!picture) return "";
    const known = this.urls.get(id) ?? URL.createObjectURL(picture.blob);
    this.urls.set(id, known);
    return known;
  }

  /** Lets go of old pictures that nothing mentions any more. */
  async tidy(): Promise<void> {
    const held = await this.overflow.transact(false, mentionedIn);
    await this.database.transact(true, async (tables) => {
      const mentioned = new Set([...held, ...(await mentionedIn(tables))]);
      for (const { id, added } of await tables.pictures.all()) {
        if (!mentioned.has(id) && Date.now() - (added ?? 0) > OLD) await tables.pictures.remove(id);
      }
    }).catch(() => undefined); // another time
  }

  // ------------------------------------------------------------------ where things lie

  /** Keeps what there was no room for, as far as there is some now: each by itself, since one may be too large. What was deleted makes room first. */
  private async makeUp(): Promise<void> {
    await this.tidy();
    const held = new Set((await this.overflow.transact(false, (tables) => tables.conversations.all())).map(({ id }) => id));
    const mentioned = new Set([...(await this.overflow.transact(false, mentionedIn)), ...(await this.database.transact(false, mentionedIn))]);
    const chats = [...this.overflowed];
    const acts = [
      ...chats.filter((id) => !held.has(id)).map((id) => () => this.move(id)),
      ...[...this.unkept].filter((id) => mentioned.has(id)).map((id) => () => this.put(this.known.get(id)!)),
      ...chats.filter((id) => held.has(id)).map((id) => () => this.move(id)),
    ];
    let all = acts.length > 0;
    for (const act of acts) {
      await act().catch((error: unknown) => {
        all = false;
        console.info("there is still no room:", error);
      });
    }
    if (all) this.full(true);
  }

  /** Brings a conversation from memory to the database; one that was deleted meanwhile is deleted there, too. */
  private async move(id: string): Promise<void> {
    await this.overflow.transact(true, async (held) => {
      if (!this.overflowed.has(id)) return; // it is there already
      const conversation = await loaded(held, id);
      const draft = await held.drafts.get(id);
      await this.database.transact(true, async (tables) => {
        if (!conversation) return erase(tables, id);
        const before = new Map((await tables.turns.all(id)).map((turn) => [turn.id, ""]));
        await keepChanged(tables, conversation, before);
        if (draft) await tables.drafts.put(draft);
      });
      this.overflowed.delete(id);
      void this.overflow.transact(true, (tables) => erase(tables, id)); // after those who are about to read it there
    });
    this.tabs.tell({ what: "changed", conversation: id });
  }

  private where(id: string): Database {
    return this.overflowed.has(id) ? this.overflow : this.database;
  }

  /** Changes a conversation's records; where the browser has no room, in memory, with all that there was before. */
  private async write<T>(id: string, act: (tables: Tables) => Promise<T>): Promise<T> {
    if (this.overflowed.has(id)) {
      const changed = await this.overflow.transact(true, async (tables) => this.overflowed.has(id) && { found: await act(tables) });
      return changed ? changed.found : this.write(id, act); // it went to the database meanwhile
    }
    try {
      return await this.database.transact(true, act);
    } catch (error) {
      console.info("the browser did not keep a change:", error);
      const before = await this.load(id);
      const draft = await this.draft(id);
      this.overflowed.add(id);
      this.full();
      return this.overflow.transact(true, async (tables) => {
        if (before && !(await tables.conversations.get(id))) {
          await keepChanged(tables, before, new Map());
          await tables.drafts.put({ ...draft, conversation: id });
        }
        return act(tables);
      });
    }
  }
}

async function loaded(tables: Tables, id: string): Promise<Conversation | null> {
  const record = await tables.conversations.get(id);
  if (!record || !Array.isArray(record.order)) return null;
  const turns = new Map((await tables.turns.all(id)).map(({ conversation: _, ...turn }) => [turn.id, turn as Turn]));
  const { order, ...summary } = record;
  return { ...summary, turns: order.flatMap((turn) => turns.get(turn) ?? []) };
}

async function erase(tables: Tables, id: string): Promise<void> {
  for (const turn of await tables.turns.all(id)) await tables.turns.remove([id, turn.id]);
  await tables.conversations.remove(id);
  await tables.drafts.remove(id);
}

/** The pictures that stand in questions and in what is being written. */
async function mentionedIn(tables: Tables): Promise<string[]> {
  const asked = picturesIn({ turns: await tables.turns.all() });
  const drafts = (await tables.drafts.all()).flatMap(({ pieces, editing }) => picturesOf([...pieces, ...(editing?.before ?? [])]));
  return [...asked, ...drafts];
}

async function keepChanged(tables: Tables, conversation: Conversation, before: Map<string, string>): Promise<void> {
  const { turns, ...summary } = conversation;
  for (const turn of turns) {
    if (before.get(turn.id) !== JSON.stringify(turn)) await tables.turns.put({ ...turn, conversation: conversation.id });
    before.delete(turn.id);
  }
  for (const gone of before.keys()) await tables.turns.remove([conversation.id, gone]);
  await tables.conversations.put({ ...summary, order: turns.map((turn) => turn.id) });
}

function saidIn(turn: Turn): string {
  return turn.role === "user" ? textOf(turn.pieces) : turn.answers.map((answer) => answer.text).join("\n");
}
