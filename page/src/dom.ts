// Elements in one call, icons, and a few words of formatting.

import { shortTime } from "./days";

type Child = Node | string | null | false | undefined;
type Props = Record<string, unknown>;

/** An element with properties (`on...` are listeners, `data-`/`aria-`/`role` attributes) and children. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  props: Props = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on") && typeof value === "function") {
      element.addEventListener(name.slice(2).toLowerCase(), value as EventListener);
    } else if (name === "class") {
      element.className = String(value);
    } else if (name.includes("-") || ["role", "for", "list", "popover"].includes(name)) {
      element.setAttribute(name, String(value));
    } else {
      (element as unknown as Props)[name] = value;
    }
  }
  element.append(...children.filter((child): child is Node | string => child !== null && child !== false && child !== undefined));
  return element;
}

/** Puts the children of an element in order. Those that stand right are not touched: they keep the focus, and a press that is under way. */
export function arrange(parent: HTMLElement, children: readonly HTMLElement[]): void {
  const wanted = new Set<Node>(children);
  for (const child of [...parent.childNodes]) if (!wanted.has(child)) child.remove();
  for (const [at, child] of children.entries()) {
    const there = parent.childNodes[at];
    if (there !== child) parent.insertBefore(child, there ?? null);
  }
}

const SVG = "http://www.w3.org/2000/svg";

const ICONS = {
  send: "M12 19V5m-6 6 6-6 6 6",
  stop: "M7 7h10v10H7z",
  plus: "M12 5v14M5 12h14",
  picture: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.5 9.5h.01",
  camera: "M4 8h3l2-3h6l2 3h3v11H4zM12 10a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7",
  menu: "M4 7h16M4 12h16M4 17h16",
  tune: "M4 7h9M17 7h3M15 5a2 2 0 1 0 0 4 2 2 0 0 0 0-4M4 17h3M11 17h9M9 15a2 2 0 1 0 0 4 2 2 0 0 0 0-4",
  close: "M6 6l12 12M18 6 6 18",
  again: "M20 11a8 8 0 1 0-2.300 6.200M20 5v6h-6",
  edit: "M4 20l1-4L16.500 4.500l3 3L8 19zM14 7l3 3",
  bin: "M5 7h14M10 4h4M7 7l1 13h8l1-13M10.500 11v6M13.500 11v6",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  forward: "M5 6l7 6-7 6zM13 6l7 6-7 6z",
  eye: "M2 12s4-7 10-7 10 7 10 7-4 7-10 7S2 12 2 12zM12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6",
  eyeOff: "M4 4l16 16M9 5.500A9 9 0 0 1 12 5c6 0 10 7 10 7a17 17 0 0 1-3 3.700M6 7.500A17 17 0 0 0 2 12s4 7 10 7a9 9 0 0 0 4-1",
  look: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14M16 16l5 5M11 8.500v5M8.500 11h5",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 2v2M12 20v2M4 12H2M22 12h-2M5 5l1.500 1.500M17.500 17.500 19 19M19 5l-1.500 1.500M6.500 17.500 5 19",
  moon: "M20 14A8 8 0 1 1 10 4a6.500 6.500 0 0 0 10 10z",
  help: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18M9.500 9.500a2.500 2.500 0 1 1 3.500 2.300c-.7.3-1 .8-1 1.700M12 16.500h.01",
  down: "M12 4v11m-5-5 5 5 5-5M5 20h14",
  up: "M12 20V9m-5 5 5-5 5 5M5 4h14",
  arrowDown: "M12 5v14m-6-6 6 6 6-6",
  check: "M5 12.500l4.500 4.500L19 7.500",
  more: "M6 11a1 1 0 1 0 0 2 1 1 0 0 0 0-2M12 11a1 1 0 1 0 0 2 1 1 0 0 0 0-2M18 11a1 1 0 1 0 0 2 1 1 0 0 0 0-2",
  branch: "M7 4v10a3 3 0 0 0 3 3h7m-3-3 3 3-3 3M7 9a4 4 0 0 0 4-4",
  search: "M11 5a6 6 0 1 0 0 12 6 6 0 0 0 0-12M15.500 15.500 20 20",
} as const;

export type Icon = keyof typeof ICONS;

export function icon(name: Icon): SVGSVGElement {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A button with an icon, its words for screen readers and as a tip. */
export function iconButton(name: Icon, label: string, act: (event: MouseEvent) => void, more: Props = {}): HTMLButtonElement {
  const { class: extra, ...rest } = more;
  return h(
    "button",
    { type: "button", class: `icon-button ${extra ?? ""}`.trim(), "aria-label": label, title: label, onClick: act, ...rest },
    icon(name),
  );
}

/** The mark of the three lenses, one for each part. */
export function logo(): SVGSVGElement {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 48 32");
  svg.setAttribute("class", "logo");
  svg.setAttribute("aria-hidden", "true");
  for (const [at, part] of ["tower", "projector", "language"].entries()) {
    const lens = document.createElementNS(SVG, "circle");
    lens.setAttribute("cx", String(13 + 11 * at));
    lens.setAttribute("cy", "16");
    lens.setAttribute("r", "11");
    lens.setAttribute("class", `lens ${part}`);
    svg.append(lens);
  }
  return svg;
}

export function megabytes(bytes: number): string {
  if (bytes >= 1e9) return `${(bytes / 1e9).toFixed(1)} GB`;
  return bytes >= 1e6 ? `${(bytes / 1e6).toFixed(bytes >= 1e7 ? 0 : 1)} MB` : `${Math.max(1, Math.round(bytes / 1e3))} kB`;
}

/** When something was said; nothing where that is not known. */
export function moment(time: number): HTMLElement {
  if (!time) return h("span", { class: "moment" });
  const date = new Date(time);
  return h("time", { class: "moment", dateTime: date.toISOString(), title: date.toLocaleString() }, shortTime(time));
}

export function seconds(value: number): string {
  return value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(value < 10 ? 1 : 0)} s`;
}

export function plural(count: number, one: string, many = `${one}s`): string {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

/** `act`, called once things have been quiet for `wait` milliseconds. */
export function later<T extends unknown[]>(wait: number, act: (...given: T) => void): (...given: T) => void {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = window.setTimeout(() => act(...given), wait);
  };
}

const live = h("div", { class: "visually-hidden", role: "status", "aria-live": "polite" });

/** Says something to people who can't see the page. */
export function announce(words: string): void {
  if (!live.isConnected) document.body.append(live);
  live.textContent = words;
}
