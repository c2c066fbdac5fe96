/** One answer: what is known of it, and how it is shown. */

import { button, copyButton, element } from "./elements.js";
import { showHeat } from "./heat.js";
import { vectors } from "./vectors.js";

/** @import {Applied, Chunk, Decision} from "./api.js" */
/**
 * @typedef {{asked: string, seed: number, text: string, thought?: string, state: "open" | "done" | "stopped" | "failed", finish: string,
 *   problem: string, policy: Decision[], applied: Applied | null, rate: number | null}} Answer
 */

/** @param {string} asked the steering @param {number} seed @returns {Answer} */
export const newAnswer = (asked, seed) =>
  ({ asked, seed, text: "", state: "open", finish: "", problem: "", policy: [], applied: null, rate: null });

/** Shows an answer, from its first token on. @param {Answer} answer @param {string} title of its column */
export function showAnswer(answer, title) {
  const text = document.createTextNode(answer.text);
  const words = element("p", { class: "words" }, text);
  const thought = document.createTextNode(answer.thought ?? "");
  const thinking = element("details", { class: "thinking" }, element("summary", {}, "Thinking"), element("p", {}, thought));
  const [wait, problem, facts] = ["note", "problem", "facts"].map((kind) => element("p", { class: kind }));
  const [policy, notes] = ["The policy", "Notes"].map((label) => element("ul", { class: "notes", "aria-label": label }));
  const actions = element("span", { class: "actions" });
  const root = element("article", { class: "answer" }, title && element("h3", {}, title), thinking, words, wait, problem, policy, notes);
  root.append(element("div", { class: "row" }, facts, actions));
  problem.role = "alert";

  /** @param {Chunk} chunk */
  function take({ choices, policy: decisions = [], steering, timing }) {
    const { delta, finish_reason } = choices?.[0] ?? {};
    wait.textContent = "";
    thought.appendData(delta?.reasoning_content ?? "");
    text.appendData(delta?.content ?? "");
    thinking.hidden = !thought.data;
    Object.assign(answer, { text: text.data, thought: thought.data });
    answer.finish ||= finish_reason ?? "";
    answer.applied ??= steering ?? null;
    answer.rate ??= timing?.tokens_per_second ?? null;
    answer.policy.push(...decisions);
    policy.append(...decisions.map(decisionNote));
  }

  /** @param {Answer["state"]} state @param {string} [why] */
  function end(state, why = "") {
    Object.assign(answer, { state, problem: why });
    update();
  }

  function update() {
    const open = answer.state === "open";
    wait.textContent = "";
    root.classList.toggle("open", open);
    problem.textContent = answer.problem;
    notes.replaceChildren(...(answer.applied?.notes ?? []).map((one) => element("li", {}, one)));
    facts.textContent = open || answer.problem ? "" : factWords(answer);
    actions.replaceChildren(...(open || !answer.text ? [] : [copyButton(() => answer.text), heatButton(answer, words)]));
  }

  policy.append(...answer.policy.map(decisionNote));
  thinking.hidden = !thought.data;
  update();
  return { root, answer, take, end, wait: (/** @type {string} */ what) => (wait.textContent = what) };
}

/** @param {Answer} answer @param {HTMLElement} words what it takes the place of */
function heatButton({ asked, text }, words) {
  /** @type {HTMLElement | null} */
  let heat = null;
  const made = button("Trait heat", () => {
    const named = vectors.list.find(({ id }) => asked.includes(id)) ?? vectors.list[0];
    const next = heat ? null : showHeat(text, named?.id);
    (heat ?? words).replaceWith(next ?? words);
    heat = next;
    made.ariaPressed = String(heat !== null);
  }, { "aria-pressed": "false" });
  return made;
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

/** A policy's decision in words; localsteer/policy/audit.py says what they are. @param {Decision} decision */
function decisionNote({ action, rule, position, steer, classifier, score, threshold, detail }) {
  const by = steer ? ` by ${steer}` : "";
  const what = {
    pass: "looked and did not act",
    fire: `began to steer${by}`,
    release: `stopped steering${by}`,
    rewind: `took words back and steers${by}`,
    "rewinds exhausted": `steers${by}, and takes no more words back`,
    limited: "is held at the largest dose",
    error: "could not look",
  }[action] ?? action;
  const seen = typeof score === "number" ? `${classifier} ${score.toFixed(2)}, true from ${threshold?.toFixed(2)}` : classifier;
  const when = position === 0 ? "after the prompt" : `at token ${position}`;
  const why = [seen, detail].filter(Boolean).join("; ");
  return element("li", { class: action === "pass" ? "" : "acted" }, `${rule ? `“${rule}”` : "The policy"} ${what} ${when} (${why}).`);
}
