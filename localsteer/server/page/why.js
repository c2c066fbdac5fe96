/** Why an answer is as it is: what was added to the model, and what a policy decided. */

import { element } from "./elements.js";

/** @import {Applied, Decision, Term} from "./api.js" */
/** @import {Answer} from "./answer.js" */

const SCOPES = { response: "The answer is steered.", prompt: "The prompt and the answer are steered.", anchored: "The answer is steered, and the unsteered model has a say in every token." };

/** All that is known of it. @param {Answer} answer */
export function why({ asked, applied, policy, seed }) {
  const steers = policy.some(({ strength }) => strength);
  return element(
    "section", { class: "why", "aria-label": "Why" },
    ...(applied?.terms.length ? [said(SCOPES[applied.scope]), termTable(applied)] : [said(nothing(asked, applied, steers))]),
    ...(applied?.terms ?? []).map(({ worth }) => said(worth ?? "")),
    ...(applied?.notes ?? []).map(said),
    policy.length ? element("ul", { class: "notes", "aria-label": "Decisions" }, policy.map(decisionNote)) : "",
    said(`With seed ${seed} it can be had again.`),
  );
}

/** @param {string} asked @param {Applied | null} applied @param {boolean} steers whether the policy does */
function nothing(asked, applied, steers) {
  if (!applied && asked) return `${asked} was asked for; the server has not said what that did.`;
  return steers ? "Nothing was added but what the policy steered." : "Nothing was added: this is the model as it is.";
}

/** @param {string} words */
const said = (words) => element("p", { class: "note" }, words);

/** @param {Applied} applied */
function termTable({ terms, relative_dose }) {
  const heads = ["term", "layers", "relative dose"].map((head) => element("th", { scope: "col" }, head));
  const rows = terms.map((term) => row([termWords(term), layerWords(term.layers), doseWords(term.relative_dose)]));
  const sum = terms.length > 1 ? [row(["together", "", doseWords(relative_dose)])] : [];
  return element("table", {}, element("tr", {}, heads), ...rows, ...sum);
}

/** @param {string[]} cells */
const row = ([head, ...cells]) => element("tr", {}, element("th", { scope: "row" }, head), ...cells.map((cell) => element("td", {}, cell)));

/** @param {Term} term */
const termWords = ({ term, removed, phase }) => [term, removed && "removed", phase === "thinking" && "while it thinks"].filter(Boolean).join(", ");

/** @param {number | null} dose */
const doseWords = (dose) => (dose === null ? "not known" : dose.toFixed(2));

/** 8, 9, 10, 12 are 8–10, 12. @param {number[]} layers */
function layerWords(layers) {
  const starts = layers.filter((layer) => !layers.includes(layer - 1));
  const ends = layers.filter((layer) => !layers.includes(layer + 1));
  return starts.map((start, place) => (start === ends[place] ? start : `${start}–${ends[place]}`)).join(", ");
}

/** A policy's decision in words; localsteer/policy/audit.py says what they are. @param {Decision} decision */
export function decisionNote({ action, rule, position, steer, classifier, score, threshold, detail }) {
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
  const reason = [seen, detail].filter(Boolean).join("; ");
  return element("li", { class: action === "pass" ? "" : "acted" }, `${rule ? `“${rule}”` : "The policy"} ${what} ${when} (${reason}).`);
}
