/** One answer: what is known of it, and how it is shown. */

import { button, copyButton, element } from "./elements.js";
import { showHeat } from "./heat.js";
import { growingMarkdown } from "./markdown.js";
import { decisionNote, why } from "./why.js";

/** @import {Applied, Chunk, Decision} from "./api.js" */
/** @typedef {"with" | "without" | "against" | "dose"} Kind how it is steered: as the knobs stood, not, the other way, or by a dose of a sweep */
/**
 * @typedef {{kind: Kind, title: string, asked: string, under: string, seed: number, text: string, thought: string,
 *   state: "open" | "done" | "stopped" | "failed", finish: string, problem: string, policy: Decision[], applied: Applied | null,
 *   rate: number | null}} Answer `under`: the settings that it was asked for with
 */

/** The share of the time that drawing may take of a text that is long to read. */
const DRAWING = 0.2;

/** @param {Pick<Answer, "kind" | "title" | "asked" | "under" | "seed">} wanted @returns {Answer} */
export const newAnswer = (wanted) =>
  ({ ...wanted, text: "", thought: "", state: "open", finish: "", problem: "", policy: [], applied: null, rate: null });

/**
 * Shows an answer, from its first token on.
 * @param {Answer} answer @param {{title?: string, write?: (what: () => void) => void, more?: Node[]}} [options] `write` does what changes
 * the height, `more` are further acts
 */
export function showAnswer(answer, { title = "", write = (what) => what(), more = [] } = {}) {
  const words = element("div", { class: "words" });
  const draw = growingMarkdown(words);
  const thought = document.createTextNode(answer.thought);
  const thinking = element("details", { class: "thinking" }, element("summary", {}, "Thinking"), element("p", {}, thought));
  const [wait, problem, facts] = ["note", "problem", "facts"].map((kind) => element("p", { class: kind }));
  const [policy, notes] = [["notes policy", "The policy"], ["notes", "Notes"]].map(([kind, label]) => element("ul", { class: kind, "aria-label": label }));
  const actions = element("span", { class: "actions" });
  const [shown, below] = [element("div", { class: "shown" }, words), element("div", {})];
  const root = element("article", { class: "answer" }, title && element("h3", {}, title), thinking);
  root.append(element("div", { class: "body" }, shown, policy), wait, problem, notes, element("div", { class: "row" }, facts, actions), below);
  problem.role = "alert";
  policy.ariaLive = "polite";
  let [drawing, rest] = [0, 0];

  /** @param {Chunk} chunk */
  function take({ choices, policy: decisions = [], steering, timing }) {
    const { delta, finish_reason } = choices?.[0] ?? {};
    answer.thought += delta?.reasoning_content ?? "";
    answer.text += delta?.content ?? "";
    answer.finish ||= finish_reason ?? "";
    answer.applied ??= steering ?? null;
    answer.rate ??= timing?.tokens_per_second ?? null;
    answer.policy.push(...decisions);
    if (delta?.content || delta?.reasoning_content) wait.textContent = "";
    if (decisions.length) write(() => policy.append(...decisions.map(decisionNote)));
    drawing ||= setTimeout(() => requestAnimationFrame(() => write(grow)), Math.max(0, rest - performance.now()));
  }

  function grow() {
    const start = performance.now();
    thought.appendData(answer.thought.slice(thought.length));
    thinking.hidden = !thought.data;
    draw(answer.text, answer.state !== "open");
    drawing = 0;
    rest = performance.now() + (performance.now() - start) / DRAWING;
  }

  /** @param {Answer["state"]} state @param {string} [reason] */
  function end(state, reason = "") {
    Object.assign(answer, { state, problem: reason });
    write(update);
  }

  function update() {
    const open = answer.state === "open";
    if (!open) grow();
    wait.textContent = "";
    root.classList.toggle("open", open);
    problem.textContent = answer.problem;
    notes.replaceChildren(...(answer.applied?.notes ?? []).map((one) => element("li", {}, one)));
    facts.textContent = open || answer.problem ? "" : factWords(answer);
    actions.replaceChildren(...(open || !answer.text ? [] : acts()));
  }

  const acts = () => [
    copyButton(() => answer.text),
    ...otherViews(shown, words, {
      Raw: () => element("p", { class: "words raw" }, answer.text),
      "Trait heat": () => showHeat(answer.text, answer.asked),
    }),
    ...otherViews(below, "", { Why: () => why(answer) }),
    ...more,
  ];

  policy.append(...answer.policy.map(decisionNote));
  thinking.hidden = !thought.data;
  update();
  return { root, answer, take, end, wait: (/** @type {string} */ what) => (wait.textContent = what) };
}

/** Buttons that show something else in a place, one at a time. @param {Element} place @param {Element | string} usual @param {Record<string, () => Element>} views */
function otherViews(place, usual, views) {
  /** @type {HTMLButtonElement[]} */
  const buttons = Object.entries(views).map(([label, make], number) =>
    button(label, () => {
      const shows = buttons[number].ariaPressed !== "true";
      buttons.forEach((one, other) => (one.ariaPressed = String(shows && other === number)));
      place.replaceChildren(shows ? make() : usual);
    }, { "aria-pressed": "false" }),
  );
  return buttons;
}

/** @param {Answer} answer */
function factWords({ state, finish, asked, applied, policy, rate, seed }) {
  const expression = applied?.expression ?? asked;
  const dose = applied?.expression ? applied.relative_dose : null;
  return [
    state === "stopped" ? state : { length: "ended at its limit", content_filter: "ended by the policy" }[finish],
    expression ? `steered by ${expression}` : policy.some(({ strength }) => strength) ? "steered by the policy only" : "not steered",
    applied?.scope === "prompt" && "the prompt, too",
    dose !== null && `relative dose ${dose?.toFixed(2)}`,
    rate !== null && `${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s`,
    `seed ${seed}`,
  ].filter(Boolean).join(" · ");
}
