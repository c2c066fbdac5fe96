/**
 * Markdown as elements. None of it is ever parsed as HTML: a token becomes one of the elements named here, and texts become text
 * nodes. HTML in an answer is text, images are links, and links lead to the web or to a mailbox only.
 */

import { copyButton, element } from "./elements.js";
import { Marked } from "./vendor/marked/marked.esm.js";

/** @typedef {{type: string, raw: string, text: string, tokens?: Token[], [more: string]: any}} Token */
/** @typedef {{token: Token, node: Element}} Block */

const marked = new Marked({ gfm: true, breaks: true });
marked.use({ tokenizer: { html() {}, tag() {} } }); // what only looks like HTML is Markdown as all else

const LINKED = ["http:", "https:", "mailto:"];
const ENTITY = /&(?:#\d{1,7}|#x[\da-f]{1,6}|[a-z][a-z\d]{1,31});/gi;

/** @type {Record<string, (token: any) => Node | string | (Node | string)[]>} */
const BLOCKS = {
  paragraph: ({ tokens }) => element("p", {}, inline(tokens)),
  // Below the question, which is a heading of the second level.
  heading: ({ depth, tokens }) => element(depth < 3 ? "h3" : depth < 5 ? "h4" : "h5", {}, inline(tokens)),
  blockquote: ({ tokens }) => element("blockquote", {}, blocks(tokens)),
  code: codeBlock,
  hr: () => element("hr", {}),
  list: ({ ordered, start, items }) =>
    element(ordered ? "ol" : "ul", ordered && start !== 1 ? { start } : {}, items.map((/** @type {Token} */ item) => element("li", {}, blocks(item.tokens ?? [])))),
  table: ({ header, rows }) => {
    const row = (/** @type {any[]} */ cells, /** @type {"th" | "td"} */ kind) =>
      element("tr", {}, cells.map(({ tokens, align }) => element(kind, { ...(kind === "th" && { scope: "col" }), ...(align && { class: align }) }, inline(tokens))));
    const body = rows.map((/** @type {any[]} */ cells) => row(cells, "td"));
    return element("div", { class: "table", tabindex: 0, role: "group", "aria-label": "Table" }, element("table", {}, row(header, "th"), ...body));
  },
  space: () => [],
  def: () => [],
};

/** @type {typeof BLOCKS} */
const INLINE = {
  text: ({ text, tokens }) => (tokens ? inline(tokens) : readable(text)),
  escape: ({ text }) => text,
  strong: ({ tokens }) => element("strong", {}, inline(tokens)),
  em: ({ tokens }) => element("em", {}, inline(tokens)),
  del: ({ tokens }) => element("del", {}, inline(tokens)),
  codespan: ({ text }) => element("code", {}, text),
  br: () => [element("br", {}), "\n"], // for who copies it
  link: ({ href, raw, tokens }) => link(href, inline(tokens), raw),
  // Asking for an image would tell its server that somebody reads this.
  image: ({ href, text, raw }) => link(href, [`image: ${readable(text) || href}`], raw),
  checkbox: ({ checked }) => element("input", { type: "checkbox", disabled: "", "aria-label": checked ? "done" : "to do", ...(checked && { checked: "" }) }),
};

/** @param {Token[]} tokens */
const blocks = (tokens) => tokens.flatMap((token) => (BLOCKS[token.type] ?? INLINE[token.type] ?? plain)(token));
/** @param {Token[]} tokens */
const inline = (tokens) => tokens.flatMap((token) => (INLINE[token.type] ?? plain)(token));
/** @param {Token} token */
const plain = ({ raw }) => raw;

/** Only what leads outside by itself is a link; it says where to. @param {string} href @param {(Node | string)[]} words @param {string} raw */
function link(href, words, raw) {
  const url = URL.canParse(href) ? new URL(href) : null;
  if (!url || !LINKED.includes(url.protocol)) return raw;
  return element("a", { href: url.href, title: url.href, target: "_blank", rel: "noopener noreferrer nofollow" }, words);
}

/** @param {Token} token */
function codeBlock({ text, lang }) {
  const code = element("code", {}, document.createTextNode(text));
  const name = (lang ?? "").trim().split(/\s/)[0];
  const head = element("div", { class: "row" }, element("span", {}, name || "code"), element("span", { class: "actions" }, copyButton(() => code.textContent ?? "")));
  return element("div", { class: "code" }, head, element("pre", { tabindex: 0, "aria-label": `Code${name && `, ${name}`}` }, code));
}

/** With characters for their names (&eacute;): a browser knows them all. @param {string} text */
function readable(text) {
  return text.replace(ENTITY, (name) => new DOMParser().parseFromString(name, "text/html").body.textContent ?? name);
}

/** @param {string} text @returns {Token[]} */
function read(text) {
  try {
    return marked.lexer(text);
  } catch {
    return [{ type: "whole", raw: text, text }]; // nested deeper than the stack
  }
}

/** @param {Token} token @returns {Element} */
function make(token) {
  try {
    const [node] = blocks([token]);
    if (node instanceof Element) return node;
  } catch {
    // As it was written, then.
  }
  return element("p", { class: "raw" }, token.raw);
}

const shows = (/** @type {Token} */ { type }) => type !== "space" && type !== "def";

/**
 * Shows a text as Markdown while it grows. Blocks that stay as they are keep their elements, so that nothing flickers and a
 * selection stays, and those that nothing can change any more are not read again.
 * @param {Element} root @returns {(text: string, whole: boolean) => void} shows the text so far, or the whole of it
 */
export function growingMarkdown(root) {
  let settledTo = 0;
  /** @type {Block[]} those behind it */
  let shown = [];

  /** @param {Token[]} tokens */
  function show(tokens) {
    let place = 0;
    while (place < tokens.length && tokens[place].raw === shown[place]?.token.raw) place++;
    const next = tokens.slice(place).map((token, number) => ({ token, node: grown(shown[place + number], token) ?? make(token) }));
    const kept = next.map(({ node }) => node);
    for (const { node } of shown.slice(place)) if (!kept.includes(node)) node.remove();
    for (const node of kept) if (node.parentNode !== root) root.append(node);
    shown = [...shown.slice(0, place), ...next];
  }

  /** Only the last two blocks can become others. @param {Token[]} tokens */
  function settle(tokens) {
    const last = tokens.filter(shows).at(-2);
    if (!last) return;
    const before = tokens.slice(0, tokens.indexOf(last));
    settledTo += before.reduce((sum, { raw }) => sum + raw.length, 0);
    shown.splice(0, before.filter(shows).length);
  }

  return (written, whole) => {
    const text = written.replace(/\r\n?/g, "\n");
    if (whole && DEFINITION.test(text)) {
      // What a link refers to may have come behind it.
      root.replaceChildren();
      [settledTo, shown] = [0, []];
    }
    const rest = text.slice(settledTo);
    const tokens = read(whole ? rest : settled(rest));
    show(tokens.filter(shows));
    if (!whole) settle(tokens);
  };
}

/** Code that has grown keeps its element, and how far it was scrolled. @param {Block | undefined} block @param {Token} token */
function grown(block, token) {
  if (block?.token.type !== "code" || token.type !== "code" || block.token.lang !== token.lang) return null;
  const text = /** @type {Text} */ (block.node.querySelector("code")?.firstChild);
  if (!token.text.startsWith(text.data)) return null;
  text.appendData(token.text.slice(text.data.length));
  return block.node;
}

const DEFINITION = /^ {0,3}\[[^\]]+\]:/m;
const FENCE = /^ {0,3}(?:```|~~~)/gm;
const FENCING = /(?:^|\n) {0,3}(?:`{1,2}|~{1,2}|(?:`{3,}|~{3,})[^\n]*)$/;
// At the end of what there is, these may still become something else: marks of a list, a rule, a heading under its line, code or
// emphasis; and what may become a link is shown as its words, an image not yet.
const MARKS = /(?:(?:^|\n)[ \t>]*(?:[-=*_#~`+]+|\d{1,9}[.)]?)[ \t]*(?:\[[ xX]?\]?[ \t]*)?|[*_~`!]+)$/;
const LINK = /!?\[([^[\]\n]*)(?:\](?:\([^)\n]*)?)?$/;
const EMPHASIS = /(?:^|[\s(])\*(?=[^\s*])[^*]*$/;

/** What can be shown of a text that goes on: without what is open yet, and with an end for emphasis and code. @param {string} text */
function settled(text) {
  const fenced = text.replace(FENCING, ""); // which language, or whether it ends
  if ((fenced.match(FENCE)?.length ?? 0) % 2) return fenced;
  const certain = beforeRow(fenced).replace(MARKS, "").replace(LINK, (all, words) => (all.startsWith("!") ? "" : words));
  const last = certain.slice(certain.lastIndexOf("\n") + 1);
  const odd = (/** @type {string} */ mark) => last.split(mark).length % 2 === 0;
  if (odd("`")) return `${certain}\``;
  const ends = (EMPHASIS.test(last.replaceAll("**", "")) ? "*" : "") + (odd("**") ? "**" : "");
  return ends ? certain.trimEnd() + ends : certain;
}

/** A table is one from its second line on, and its rows come as a whole. @param {string} text */
function beforeRow(text) {
  const lines = text.split("\n");
  const end = lines.length - Number(lines.at(-1) === "");
  let first = end;
  while (first > 0 && lines[first - 1].startsWith("|")) first--;
  const rows = lines.slice(first, end);
  if (rows.length === 1 || (rows.length === 2 && /^[|:\- \t]*$/.test(rows[1]))) return lines.slice(0, first).join("\n");
  return rows.length && end === lines.length ? lines.slice(0, -1).join("\n") : text;
}
