/** What a sweep is asked for with: a dialog, and the commands of the terminal's chat that the page knows as well. */

import { byId, element } from "./elements.js";
import { vectors } from "./vectors.js";

/** @typedef {{vector: string, strengths: number[]}} Sweep */

const [FROM, TO, COUNT] = [-1, 1, 5];
const MOST = 8;

/** Strengths from one to another, as many. @param {number} from @param {number} to @param {number} count */
const steps = (from, to, count) => Array.from({ length: count }, (_, place) => Number((from + ((to - from) * place) / (count - 1)).toFixed(3)) || 0);

/** The dialog. @param {{asked: () => boolean, begin: (sweep: Sweep) => void}} chat `asked`: whether there is a question @returns {(vector?: string) => void} opens it */
export function setUpSweep({ asked, begin }) {
  const [dialog, form, choice, from, to, count] = ["sweep", "sweep-form", "sweep-vector", "sweep-from", "sweep-to", "sweep-count"].map(byId);
  form.onsubmit = (/** @type {Event} */ event) => {
    event.preventDefault();
    dialog.close();
    begin({ vector: choice.value, strengths: steps(Number(from.value), Number(to.value), Number(count.value)) });
  };
  return (vector) => {
    choice.replaceChildren(...vectors.list.map(({ id }) => element("option", {}, id)));
    choice.value = vector ?? choice.value;
    [from.value, to.value, count.value] = [FROM, TO, COUNT];
    byId("sweep-note").textContent = asked() ? "The last question is answered at each of these strengths, with one seed; the other knobs stay." : "Ask something first: a sweep answers the last question.";
    byId("sweep-begin").disabled = !asked();
    dialog.showModal();
  };
}

/**
 * A message that is a command: `/compare`, or `/sweep happy -1 1 5`.
 * @param {string} text @returns {"compare" | Sweep | null} null where it is a message @throws {SyntaxError} it is a sweep that cannot be had
 */
export function command(text) {
  const [name, vector, from = FROM, to = TO, count = COUNT, ...more] = text.split(/\s+/);
  if (name === "/compare") return "compare";
  if (name !== "/sweep") return null;
  const [low, high, number] = [from, to, count].map(Number);
  if (!vector || more.length || ![low, high].every(Number.isFinite) || !Number.isInteger(number) || number < 2 || number > MOST) {
    throw new SyntaxError(`Write /sweep NAME [FROM TO [COUNT]], such as /sweep happy ${FROM} ${TO} ${COUNT}; at most ${MOST} strengths.`);
  }
  if (!vectors.get(vector)) throw new SyntaxError(`The server has no vector called ${vector}.`);
  return { vector, strengths: steps(low, high, number) };
}
