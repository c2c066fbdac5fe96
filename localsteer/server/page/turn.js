/** A question and its answers: the one that the conversation goes on with, and those beside it. */

import { newAnswer, showAnswer } from "./answer.js";
import { button, element } from "./elements.js";
import { scope, settings } from "./settings.js";
import { steering } from "./steering.js";

/** @import {Answer, Kind} from "./answer.js" */
/** @typedef {{user: string, answers: Answer[], sweep: {vector: string, answers: Answer[]} | null}} Turn */
/** @typedef {ReturnType<typeof showAnswer>} View */
/** @typedef {{again: () => void, compare: () => void, sweep: () => void}} Acts */

const TITLES = { with: "Steered", without: "Unsteered", against: "The other way", dose: "" };

/**
 * A question that is to be answered; where it is compared, also unsteered and steered the other way. All answers have one seed, so that
 * what differs comes from the steering alone, and what was answered so already is not asked for again.
 * @param {string} user @param {{compared: boolean, seed: number, before?: Turn}} how @returns {Turn}
 */
export function newTurn(user, { compared, seed, before }) {
  /** @type {[Kind, string | null][]} */
  const wanted = [["against", steering.opposite], ["without", ""], ["with", steering.text]];
  const answers = wanted.filter(([kind, asked]) => kind === "with" || (compared && steering.text.trim() && asked !== null));
  return { user, answers: answers.map(([kind, asked]) => answerOf(before, { kind, title: TITLES[kind], asked: asked ?? "", seed })), sweep: null };
}

/** The last question at doses of a vector; all else is steered as the knobs stand. @param {Turn} turn @param {string} vector @param {number[]} strengths */
export function newSweep(turn, vector, strengths) {
  const { seed } = mainAnswer(turn);
  const answers = strengths.map((strength) =>
    answerOf(turn, { kind: "dose", title: String(strength), asked: steering.with(vector, strength), seed }),
  );
  return { vector, answers };
}

/** Whose earlier answers stand in the prompt: a dose goes on with the main ones. @param {Kind} kind */
const lineOf = (kind) => (kind === "dose" ? "with" : kind);

/** @param {Turn | undefined} before @param {{kind: Kind, title: string, asked: string, seed: number}} wanted @returns {Answer} */
function answerOf(before, wanted) {
  const under = JSON.stringify([settings, scope()]);
  const there = before ? [...before.answers, ...(before.sweep?.answers ?? [])] : [];
  const line = lineOf(wanted.kind);
  const same = there.find(
    (one) => lineOf(one.kind) === line && one.asked === wanted.asked && one.seed === wanted.seed && one.under === under && one.state === "done",
  );
  return same ? { ...same, ...wanted } : newAnswer({ ...wanted, under });
}

/** The one that the conversation goes on with. @param {Turn} turn */
export const mainAnswer = ({ answers }) => /** @type {Answer} */ (answers.at(-1));

/** What was said in a turn, for answers of a kind: a comparison goes on with its own. @param {Turn} turn @param {Kind} kind */
export function answerFor(turn, kind) {
  const own = turn.answers.find((answer) => answer.kind === kind);
  return own?.text ? own : mainAnswer(turn);
}

/** @param {Turn} turn @param {Acts} acts @param {(what: () => void) => void} write @returns {{root: HTMLElement, views: View[]}} */
export function showTurn(turn, acts, write) {
  const { user, answers, sweep } = turn;
  const compared = answers.length > 1;
  const views = answers.map((answer) => showAnswer(answer, { title: compared ? answer.title : "", write }));
  const root = element("li", { class: "turn" }, element("h2", { class: "user" }, user), cards(views, compared ? "row-of-cards compared" : ""));
  if (sweep) {
    const { vector } = sweep;
    const doses = sweep.answers.map((answer) =>
      showAnswer(answer, { title: `${answer.title.replace("-", "−")} ${vector}`, write, more: [button("Turn the knob here", () => steering.turn(vector, Number(answer.title)))] }),
    );
    root.append(element("h3", { class: "sweep-title" }, `Sweep of ${vector}`), cards(doses, "row-of-cards sweep"));
    views.push(...doses);
  }
  const buttons = [button("Answer again", acts.again), button("Compare", acts.compare), button("Sweep", acts.sweep)];
  root.append(element("div", { class: "actions turn-actions" }, buttons));
  return { root, views };
}

/** @param {View[]} views @param {string} kind */
const cards = (views, kind) => element("div", { class: `answers ${kind}` }, views.map((view) => view.root));
