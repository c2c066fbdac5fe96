/** The knobs, and the list of others. */

import { showCurve } from "./curve.js";
import { button, byId, element, load, save, signed } from "./elements.js";
import { steering } from "./steering.js";
import { vectors } from "./vectors.js";

/** @import {Vector} from "./vectors.js" */

/** @param {(name: string) => void} sweep asks for a sweep of a vector */
export function setUpKnobs(sweep) {
  /** @type {Map<string, ReturnType<typeof makeKnob>>} */
  const knobs = new Map();
  const find = setUpList(knobs, (name) => {
    add(name);
    update();
    knobs.get(name)?.slider.focus();
  });

  /** @param {string} name */
  function add(name) {
    if (knobs.has(name) || !vectors.get(name)) return;
    knobs.set(name, makeKnob(name, sweep, () => remove(name)));
    byId("knobs").append(knobs.get(name)?.root);
  }

  /** @param {string} name */
  function remove(name) {
    knobs.get(name)?.root.remove();
    knobs.delete(name);
    steering.turn(name, 0);
    byId("add-knob").focus();
  }

  function update() {
    if (!vectors.list.length) return;
    steering.terms.forEach((term) => term.ablate || add(term.vector));
    for (const knob of knobs.values()) knob.update();
    save("knobs", [...knobs.keys()]);
    find();
  }

  vectors.addEventListener("change", () => (load("knobs") ?? firstFew(vectors.list)).forEach(add), { once: true });
  vectors.addEventListener("change", update);
  steering.addEventListener("change", update);
}

const STEP = 0.05;
/** The share of a fader that a number beside it takes. */
const CLOSE = 0.13;
// What is heard best by who turns a knob for the first time, the least first.
const PLAIN = ["concise", "pirate", "formal", "happy"];

/** Best those that can be turned at once and say how far; among them those that one hears. @param {Vector[]} list */
function firstFew(list) {
  /** @param {Vector} vector */
  const worth = ({ id, state, calibrated, dosed }) => (state === "ready" ? 4 : 0) + (calibrated ? 2 : Number(dosed)) + (PLAIN.indexOf(id) + 1) / 8;
  return [...list].sort((one, other) => worth(other) - worth(one)).slice(0, 4).map((vector) => vector.id);
}

/** @param {string} name @param {(name: string) => void} sweep @param {() => void} remove */
function makeKnob(name, sweep, remove) {
  const reset = () => steering.turn(name, 0);
  const turn = () => steering.turn(name, Number(slider.value));
  const slider = element("input", { type: "range", step: STEP, "aria-label": name, input: turn, dblclick: reset });
  const [value, low, high] = ["value", "pole", "pole"].map((kind) => element("span", { class: kind }));
  const state = element("p", { class: "state" });
  const marks = element("div", { class: "marks", "aria-hidden": "true" });
  const root = element(
    "li", { class: "knob", title: vectors.get(name)?.description ?? "" },
    element(
      "div", { class: "row" },
      element("h3", {}, name),
      element(
        "span", { class: "actions" },
        button("Curve", () => showCurve(name), { "aria-label": `Curve of ${name}` }),
        button("Sweep", () => sweep(name), { "aria-label": `Sweep ${name}` }),
        button("Reset", reset, { "aria-label": `Reset ${name}` }),
        button("Remove", remove, { "aria-label": `Remove ${name}` }),
      ),
    ),
    element("div", { class: "fader" }, element("div", { class: "scale" }), slider),
    value, marks, element("div", { class: "poles" }, low, high), state,
  );

  function update() {
    const strength = steering.strengthOf(name);
    const range = vectors.range(name);
    // A strength that was written may be further out.
    const ends = [Math.min(range.low, Math.floor(strength / STEP) * STEP), Math.max(range.high, Math.ceil(strength / STEP) * STEP)];
    const past = Math.abs(strength) > 1;
    const { positive, negative } = vectors.poles(name);
    const toward = strength === 0 ? "off" : `toward ${strength > 0 ? positive : negative}`;
    [slider.min, slider.max, slider.value] = [...ends, strength].map(String);
    scale(root, marks, ends, strength);
    root.classList.toggle("measured", range.measured);
    root.classList.toggle("past", past && range.measured);
    [value.textContent, low.textContent, high.textContent] = [signed(strength), negative, positive];
    state.textContent = [past && range.measured && beyond(strength, vectors.get(name)?.tried), vectors.state(name)].filter(Boolean).join(", ");
    slider.setAttribute("aria-valuetext", `${signed(strength)}, ${toward} ${state.textContent}`);
  }
  return { root, slider, update };
}

/** @param {number} strength past 1 @param {Vector["tried"] | undefined} tried */
function beyond(strength, tried) {
  const most = tried?.[strength > 0 ? "positive" : "negative"];
  return most && Math.abs(strength) > most ? "▲ past all that was measured" : "▲ past the measured strength";
}

/** Where on the fader its marks and its filled part are. @param {HTMLElement} root @param {Element} marks @param {number[]} ends @param {number} strength */
function scale(root, marks, [low, high], strength) {
  const share = (/** @type {number} */ at) => `${(((at - low) / (high - low)) * 100).toFixed(2)}%`;
  const parts = { from: Math.min(strength, 0), to: Math.max(strength, 0), less: -1, more: 1 };
  for (const [part, at] of Object.entries(parts)) root.style.setProperty(`--${part}`, share(at));
  const told = [low, -1, 0, 1, high].filter((at, place) => place % 4 || Math.abs(at) - 1 > (high - low) * CLOSE);
  marks.replaceChildren(...told.map((at) => {
    const mark = element("span", { class: Math.abs(at) === 1 ? "strong" : "" }, String(at).replace("-", "−"));
    mark.style.left = share(at);
    return mark;
  }));
}

/** The searchable list of vectors that have no knob yet. @param {Map<string, unknown>} knobs @param {(name: string) => void} add */
function setUpList(knobs, add) {
  const search = byId("search");

  function find() {
    const words = search.value.toLowerCase().split(/\s+/);
    const free = vectors.list.filter(({ id }) => !knobs.has(id));
    const found = free.filter(({ id, positive, negative, description }) => {
      const text = `${id} ${positive} ${negative} ${description}`.toLowerCase();
      return words.every((/** @type {string} */ word) => text.includes(word));
    });
    byId("found").replaceChildren(...found.map(choice));
    byId("found-count").textContent = `${found.length} of ${free.length} vectors`;
  }

  /** @param {Vector} vector */
  function choice({ id, description }) {
    const pick = () => {
      byId("picker").open = false;
      search.value = "";
      add(id);
    };
    const about = element("small", {}, `${description} `, element("i", {}, vectors.state(id)));
    return element("li", {}, element("button", { click: pick }, element("b", {}, id), about));
  }

  search.oninput = find;
  byId("picker").ontoggle = () => {
    if (!byId("picker").open) return;
    search.focus();
    byId("found").scrollIntoView({ block: "nearest" });
  };
  return find;
}
