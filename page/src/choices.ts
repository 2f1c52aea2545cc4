// Small choices that the browser keeps: settings of new chats, presets, the theme, what is open.

import { soundSampling, soundSettings } from "./sound";
import type { Preset, Settings } from "./types";
import { PLAIN } from "./types";

const SETTINGS = "trifocal.settings";
const MODEL = "trifocal.model";
const PRESETS_ = "trifocal.presets";

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

function parsed(name: string): unknown {
  try {
    return JSON.parse(read(name) ?? "null");
  } catch {
    return null;
  }
}

/** The settings that new chats begin with. */
export function settingsOfNewChats(): Settings {
  return soundSettings(parsed(SETTINGS)) ?? { sampling: { ...PLAIN }, system: null, template: null, allImages: true };
}

export function keepSettingsOfNewChats(settings: Settings): void {
  write(SETTINGS, JSON.stringify(settings));
}

/** Presets that somebody made here. */
export function ownPresets(): Preset[] {
  const found = parsed(PRESETS_) ?? (parsed(SETTINGS) as { own?: unknown } | null)?.own; // they lay in the settings once
  if (!Array.isArray(found)) return [];
  return found.flatMap((each: Partial<Preset> | null) => (typeof each?.name === "string" ? [{ name: each.name, sampling: soundSampling(each.sampling) }] : []));
}

export function keepPresets(presets: readonly Preset[]): void {
  write(PRESETS_, JSON.stringify(presets));
}

/** The model that new chats ask, where a server offers several. */
export function modelOfNewChats(): string | null {
  return read(MODEL);
}

export function keepModelOfNewChats(name: string): void {
  write(MODEL, name);
}

/** The chat that this tab shows; a new tab begins with the one that was open last. */
export function currentChat(): string | null {
  try {
    return sessionStorage.getItem("trifocal.current") ?? read("trifocal.current");
  } catch {
    return read("trifocal.current");
  }
}

export function keepCurrentChat(id: string): void {
  write("trifocal.current", id);
  try {
    sessionStorage.setItem("trifocal.current", id);
  } catch {
    // a private window
  }
}
