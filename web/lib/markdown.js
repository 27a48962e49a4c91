// Markdown of a model's answer as safe HTML: raw HTML is text, and what comes out is sanitised once more.
import MarkdownIt from "../vendor/markdown-it.mjs";
import DOMPurify from "../vendor/purify.mjs";

const markdown = new MarkdownIt({ html: false, linkify: false, breaks: true });
markdown.disable("image"); // an image address is a request to somewhere else

const ALLOWED = {
  ALLOWED_TAGS: [
    "p", "br", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "hr", "a",
    "h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td",
  ],
  ALLOWED_ATTR: ["href", "start"],
  ALLOWED_URI_REGEXP: /^https?:/i,
};

export function toSafeHtml(text) {
  const fragment = DOMPurify.sanitize(markdown.render(text), { ...ALLOWED, RETURN_DOM_FRAGMENT: true });
  for (const link of fragment.querySelectorAll("a")) {
    link.rel = "noopener noreferrer nofollow";
    link.target = "_blank";
  }
  const holder = document.createElement("div");
  holder.append(fragment);
  return holder.innerHTML;
}
