// Answers as Markdown, safely: no HTML of the model's, no picture or script that would be loaded from anywhere.

import DOMPurify from "dompurify";
import MarkdownIt from "markdown-it";

const markdown = new MarkdownIt({ html: false, linkify: false, breaks: true });
// a picture's address in an answer is shown as words: loading it would tell its owner that it was read
markdown.renderer.rules.image = (tokens, at) => {
  const token = tokens[at];
  return markdown.utils.escapeHtml(`![${token?.content ?? ""}](${token?.attrGet("src") ?? ""})`);
};

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer nofollow");
  }
});

const ALLOWED = {
  ALLOWED_TAGS: [
    ..."p br hr em strong s code pre blockquote ul ol li a h1 h2 h3 h4 h5 h6 table thead tbody tr th td".split(" "),
  ],
  ALLOWED_ATTR: ["href", "start", "target", "rel"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  RETURN_DOM_FRAGMENT: true as const,
};

export function render(text: string): DocumentFragment {
  const made = DOMPurify.sanitize(markdown.render(text), ALLOWED) as unknown as DocumentFragment;
  for (const wide of made.querySelectorAll<HTMLElement>("pre, table")) wide.tabIndex = 0; // they scroll: keys must reach them
  return made;
}
