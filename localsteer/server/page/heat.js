/** Trait heat: how far each token of an answer lies along a vector. */

import { askJSON } from "./api.js";
import { element, signed } from "./elements.js";
import { namesIn, steering } from "./steering.js";
import { vectors } from "./vectors.js";

/** @import {Poles} from "./vectors.js" */
/** @typedef {{text: string, value: number}} Token */

const BROKEN = "\uFFFD";

/** An answer's tokens in colours, with a choice of the vector: first the one that it, or else the next one, is steered by. @param {string} text @param {string} asked */
export function showHeat(text, asked) {
  const first = [...namesIn(asked), ...steering.names].find((name) => vectors.get(name)) ?? vectors.list[0]?.id;
  const options = vectors.list.map(({ id }) => element("option", {}, id));
  const choice = element("select", { "aria-label": "Vector of the heat", change: read }, options);
  const result = element("div", { "aria-live": "polite" });
  choice.value = first;

  async function read() {
    const name = choice.value;
    const { words, over } = vectors.expect([name]);
    result.replaceChildren(element("p", { class: "note" }, words || "Reading ..."));
    const shown = await readHeat(text, name).catch((error) => [element("p", { class: "problem" }, error.message)]);
    over();
    if (name === choice.value) result.replaceChildren(...shown);
  }

  read();
  return element("div", { class: "heat" }, choice, result);
}

/** @param {string} text @param {string} name */
async function readHeat(text, name) {
  const { data } = await askJSON("/v1/vectors/activations", { method: "POST", body: { texts: [text], vectors: [name] } });
  const tokens = wholeTokens(text, data[0].tokens, data[0].vectors[name]);
  const poles = vectors.poles(name);
  const most = Math.max(1e-9, ...tokens.map(({ value }) => Math.abs(value)));
  const legend = [`${poles.negative} ${signed(-most)}`, element("span", { class: "bar" }), `${signed(most)} ${poles.positive}`];
  return [element("p", { class: "legend" }, legend), ...tokenLine(tokens, poles, most)];
}

/**
 * A character may be spread over tokens, each of which the server can only write as U+FFFD: those are joined again.
 * @param {string} text @param {string[]} tokens @param {number[]} values @returns {Token[]}
 */
function wholeTokens(text, tokens, values) {
  const whole = [];
  let [at, from] = [0, 0];
  for (const [place, token] of tokens.entries()) {
    const next = tokens[place + 1] ?? "";
    if (token.includes(BROKEN) && next.includes(BROKEN)) continue;
    // Some tokenizers begin with a space that the text does not have.
    const own = text.startsWith(token, at) ? token : token.trimStart();
    const end = token.includes(BROKEN) ? (next ? text.indexOf(next, at) : text.length) : at + own.length;
    const part = values.slice(from, place + 1);
    whole.push({ text: text.slice(at, end), value: part.reduce((sum, one) => sum + one) / part.length });
    [at, from] = [end, place + 1];
  }
  return whole;
}

/** The text; the pointer or arrow keys choose the token whose number is told. @param {Token[]} tokens @param {Poles} poles @param {number} most */
function tokenLine(tokens, poles, most) {
  let current = -1;
  const told = element("p", { class: "note", role: "status" }, "Point at a token, or go through them with the arrow keys.");
  const spans = tokens.map(({ text, value }, place) => {
    const kind = value < 0 ? "token low" : "token";
    const span = element("span", { class: kind, title: signed(value, 3), pointerenter: () => tell(place) }, text);
    span.style.setProperty("--heat", `${Math.round((Math.abs(value) / most) * 100)}%`);
    return span;
  });

  /** @param {number} place */
  function tell(place) {
    spans[current]?.classList.remove("current");
    current = Math.max(0, Math.min(tokens.length - 1, place));
    spans[current].classList.add("current");
    const { text, value } = tokens[current];
    const toward = value < 0 ? poles.negative : poles.positive;
    told.textContent = `“${text.trim()}” ${signed(value, 3)} toward ${toward}, token ${current + 1} of ${tokens.length}`;
  }

  /** @param {KeyboardEvent} event */
  function keydown(event) {
    const place = { ArrowRight: current + 1, ArrowLeft: current - 1, Home: 0, End: Infinity }[event.key];
    if (place === undefined || !tokens.length) return;
    event.preventDefault();
    tell(place);
  }
  return [element("p", { class: "tokens", tabindex: 0, role: "group", "aria-label": "Tokens", keydown }, spans), told];
}
