// Elements by what changed: a tree of plain values is held against the one before, and only what differs is made anew.

export interface Branch {
  tag: keyof HTMLElementTagNameMap;
  attributes: Record<string, string>;
  children: readonly Leaf[];
}

/** Something that makes its own element; made anew only when its key is another. */
export interface Own {
  key: string;
  make: () => Node;
}

export type Leaf = string | Branch | Own;

export function branch(tag: Branch["tag"], attributes: Record<string, string> = {}, children: readonly Leaf[] = []): Branch {
  return { tag, attributes, children };
}

/** Makes the children of `parent`, which are `before`, into `after`. */
export function patch(parent: Node, before: readonly Leaf[], after: readonly Leaf[]): void {
  for (let at = before.length - 1; at >= after.length; at--) parent.childNodes[at]?.remove();
  for (const [at, wanted] of after.entries()) {
    const had = before[at];
    if (had === wanted) continue;
    const node = parent.childNodes[at];
    if (had === undefined || !node) parent.appendChild(made(wanted));
    else if (!kept(node, had, wanted)) parent.replaceChild(made(wanted), node);
  }
}

/** Whether a node could be changed into what is wanted. */
function kept(node: Node, had: Leaf, wanted: Leaf): boolean {
  if (typeof wanted === "string") {
    if (typeof had !== "string") return false;
    const text = node as Text;
    if (wanted.startsWith(had)) text.appendData(wanted.slice(had.length));
    else text.data = wanted;
    return true;
  }
  if (typeof had === "string") return false;
  if ("key" in wanted) return "key" in had && had.key === wanted.key;
  if ("key" in had || had.tag !== wanted.tag) return false;
  attributes(node as HTMLElement, had.attributes, wanted.attributes);
  patch(node, had.children, wanted.children);
  return true;
}

function made(leaf: Leaf): Node {
  if (typeof leaf === "string") return document.createTextNode(leaf);
  if ("key" in leaf) return leaf.make();
  const element = document.createElement(leaf.tag);
  attributes(element, {}, leaf.attributes);
  for (const child of leaf.children) element.appendChild(made(child));
  return element;
}

function attributes(element: HTMLElement, had: Record<string, string>, wanted: Record<string, string>): void {
  for (const name of Object.keys(had)) if (!(name in wanted)) element.removeAttribute(name);
  for (const [name, value] of Object.entries(wanted)) if (had[name] !== value) element.setAttribute(name, value);
}
