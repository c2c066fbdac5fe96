/** A vector's dose-response curve as a drawing, and the same numbers as a table. */

import { askJSON } from "./api.js";
import { byId, element, shape, signed } from "./elements.js";
import { vectors } from "./vectors.js";

/** @import {Poles} from "./vectors.js" */
/** @typedef {[low: number, mean: number, high: number]} Interval */
/** @typedef {{strength: number, dose: number, effect: Interval, cost: Interval}} Point effects below 0 are toward the negative pole */
/**
 * @typedef {{dose: number | null, curve: Record<string, number | null>[]}} Side
 * @typedef {{id: string, description: string, layers: number[], calibrated: boolean, relative_dose: number | null,
 *   calibration: {budget: number, sides: {positive: Side, negative: Side}} | null}} Described
 */

// Pixels. The plot of the cost is below that of the effect.
const [TOP, HEIGHT, GAP, LEFT, RIGHT] = [24, 170, 46, 42, 10];
const BOTTOM = TOP + 2 * HEIGHT + GAP;

/** Ask for a vector's curve and show it. @param {string} name */
export async function showCurve(name) {
  const [dialog, title, body] = ["curve", "curve-title", "curve-body"].map(byId);
  const { words, over } = vectors.expect([name]);
  title.textContent = name;
  body.replaceChildren(note(words || "Reading ..."));
  dialog.showModal();
  const shown = await askJSON(`/v1/vectors/${encodeURIComponent(name)}`, { method: "POST" }).then(
    (vector) => describe(vector, body.clientWidth),
    (error) => [note(error.message, "problem")],
  );
  over();
  if (title.textContent === name) body.replaceChildren(...shown);
}

/** @param {Described} vector @param {number} width @returns {Element[]} */
function describe({ id, description, layers, calibrated, relative_dose, calibration }, width) {
  const poles = vectors.poles(id);
  const dose = relative_dose === null ? "" : ` Strength 1 is a relative dose of ${relative_dose.toFixed(2)}.`;
  const facts = element("p", {}, `${description} Layers ${layers[0]} to ${layers.at(-1)}.${dose}`);
  if (!calibration) return [facts, note(`Not calibrated: ${vectors.get(id)?.dosed ? "strength 1 is as much as its text was seen to bear when it was built" : "what strength 1 does was never measured on this model"}. "localsteer calibrate ${id} -m ${byId("model").textContent}" measures more.`)];
  const { budget, sides } = calibration;
  const points = curvePoints(sides);
  const silent = /** @type {const} */ (["positive", "negative"]).filter((pole) => sides[pole].dose === null);
  return [
    facts,
    note(calibrated ? "" : "Calibrated on another file than this model: the numbers may not hold here."),
    ...silent.map((pole) => note(`Toward ${poles[pole]} nothing inside the budget does anything; the other side's dose is used.`)),
    drawCurve(id, points, budget, poles, width),
    note(
      `Effect 1 is as far as a system prompt goes toward ${poles.positive}, −1 toward ${poles.negative}, where one works. Strengths 1 and −1 are ` +
        `the strongest inside the budget of ${budget} nats a token. Brackets are 95 % intervals.`,
    ),
    curveTable(points),
  ];
}

/** @param {string} words */
const note = (words, kind = "note") => element("p", { class: kind }, words);

/** From the negative pole to the positive one. @param {{positive: Side, negative: Side}} sides @returns {Point[]} */
function curvePoints({ positive, negative }) {
  // A side without a dose is steered by that of the other one: strength 1 means that dose there, too.
  const low = sidePoints(negative, -1, negative.dose ?? positive.dose);
  return [...low.reverse(), ...sidePoints(positive, 1, positive.dose ?? negative.dose)];
}

/** @param {Side} side @param {number} sign @param {number | null} unit the dose of strength 1 @returns {Point[]} */
function sidePoints({ curve }, sign, unit) {
  /** @param {(number | null)[]} values @returns {any} */
  const interval = (values, by = 1) => values.map((value) => Number(value) * by).sort((one, other) => one - other);
  // Null is what no answer had a value for.
  return curve.filter(({ effect, cost }) => unit && effect !== null && cost !== null).map((one) => ({
    strength: (sign * Number(one.dose)) / Number(unit),
    dose: Number(one.dose),
    effect: interval([one.effect_low, one.effect, one.effect_high], sign),
    cost: interval([one.cost_low, one.cost, one.cost_high]),
  }));
}

/** @param {string} name @param {Point[]} points @param {number} budget @param {Poles} poles @param {number} width pixels */
function drawCurve(name, points, budget, poles, width) {
  const right = width - RIGHT;
  const x = scale([-1.2, 1.2, ...points.map((point) => point.strength)], LEFT, right);
  return shape(
    "svg",
    { class: "curve", viewBox: `0 0 ${width} ${BOTTOM + 44}`, role: "img", "aria-label": `Curve of ${name}; the table has its numbers` },
    plot(points.map((one) => [one.strength, one.effect]), x, TOP, right, `effect: ${poles.negative} below 0, ${poles.positive} above`),
    plot(points.map((one) => [one.strength, one.cost]), x, TOP + HEIGHT + GAP, right, "coherence cost, nats a token", budget),
    x.ticks(width / 80).map((tick) => text(x(tick), BOTTOM + 16, plain(tick), "middle", Math.abs(tick) === 1 ? "strong" : "tick")),
    text(LEFT, BOTTOM + 36, `← ${poles.negative}`, "start"),
    text((LEFT + right) / 2, BOTTOM + 36, "strength", "middle"),
    text(right, BOTTOM + 36, `${poles.positive} →`, "end"),
  );
}

/**
 * A plot of what was measured at some strengths.
 * @param {[number, Interval][]} measured @param {ReturnType<typeof scale>} x @param {number} top @param {number} right
 * @param {string} title @param {number} [budget]
 */
function plot(measured, x, top, right, title, budget = 0) {
  const y = scale([0, 0.1, budget * 1.2, ...measured.flatMap(([, interval]) => interval)], top + HEIGHT, top);
  // Nothing is added at 0, so nothing changes there.
  const means = [...measured.map(([at, [, mean]]) => [at, mean]), [0, 0]].sort(([one], [other]) => one - other);
  const across = (/** @type {number} */ value) => `M${LEFT} ${y(value)}H${right}`;
  return [
    shape("rect", { x: x(-1), y: top, width: x(1) - x(-1), height: HEIGHT }),
    ...y.ticks(5).flatMap((tick) => [line(tick ? "grid" : "", across(tick)), text(LEFT - 6, y(tick) + 4, plain(tick), "end", "tick")]),
    ...[-1, 1].map((unit) => line("unit", `M${x(unit)} ${top}v${HEIGHT}`)),
    ...(budget ? [line("budget", across(budget)), text(x(0), y(budget) - 5, `budget ${budget}`, "middle", "limit")] : []),
    line("", `M${means.map(([at, mean]) => `${x(at)} ${y(mean)}`).join("L")}`),
    ...measured.map(([at, [low, mean, high]]) =>
      shape(
        "g", { class: "point" },
        line("", `M${x(at)} ${y(low)}V${y(high)}m-3 0h6M${x(at) - 3} ${y(low)}h6`),
        shape("circle", { cx: x(at), cy: y(mean), r: 3.5 }),
      ),
    ),
    text(LEFT, top - 9, title, "start", "tick"),
  ];
}

/** @param {string} kind @param {string} d */
const line = (kind, d) => shape("path", { class: kind, d });

/** @param {number} x @param {number} y @param {string} words @param {string} anchor */
const text = (x, y, words, anchor, kind = "") => shape("text", { x, y, "text-anchor": anchor, class: kind }, words);

/** From values to pixels. @param {number[]} values that it has to hold @param {number} first @param {number} last */
function scale(values, first, last) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const map = (/** @type {number} */ value) => Math.round(first + ((value - low) / (high - low)) * (last - first));
  /** Round numbers, about so many. @param {number} count */
  const ticks = (count) => {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * ([1, 2, 5].find((one) => one * power >= rough) ?? 10);
    const start = Math.ceil(low / step);
    return Array.from({ length: Math.floor(high / step) - start + 1 }, (_, number) => (start + number) * step);
  };
  return Object.assign(map, { ticks });
}

/** @param {number} value */
const plain = (value) => String(Number(value.toFixed(6))).replace("-", "−");

/** @param {Point[]} points */
function curveTable(points) {
  /** @param {Interval} interval */
  const cell = ([low, mean, high]) => element("td", {}, signed(mean), element("small", {}, ` (${signed(low)} to ${signed(high)})`));
  const rows = points.map(({ strength, dose, effect, cost }) =>
    element("tr", {}, element("th", { scope: "row" }, signed(strength)), element("td", {}, dose.toFixed(2)), cell(effect), cell(cost)),
  );
  const heads = ["strength", "dose", "effect", "cost"].map((head) => element("th", { scope: "col" }, head));
  return element("table", {}, element("tr", {}, heads), rows);
}
