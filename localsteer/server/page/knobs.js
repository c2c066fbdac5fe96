/** The knobs, and the list of others. */

import { showCurve } from "./curve.js";
import { button, byId, element, load, save, signed } from "./elements.js";
import { steering } from "./steering.js";
import { vectors } from "./vectors.js";

/** @import {Vector} from "./vectors.js" */

export function setUpKnobs() {
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
    knobs.set(name, makeKnob(name, () => remove(name)));
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

/** Best those that can be turned at once and say how far. @param {Vector[]} list */
function firstFew(list) {
  /** @param {Vector} vector */
  const worth = ({ state, calibrated }) => (state === "ready" ? 2 : 0) + Number(calibrated);
  return [...list].sort((one, other) => worth(other) - worth(one)).slice(0, 4).map((vector) => vector.id);
}

/** @param {string} name @param {() => void} remove */
function makeKnob(name, remove) {
  const reset = () => steering.turn(name, 0);
  const turn = () => steering.turn(name, Number(slider.value));
  const slider = element("input", { type: "range", min: -2, max: 2, step: 0.05, "aria-label": name, input: turn, dblclick: reset });
  const [value, low, high] = ["value", "pole", "pole"].map((kind) => element("span", { class: kind }));
  const state = element("p", { class: "state" });
  const root = element(
    "li", { class: "knob", title: vectors.get(name)?.description ?? "" },
    element(
      "div", { class: "row" },
      element("h3", {}, name),
      element(
        "span", { class: "actions" },
        button("Curve", () => showCurve(name), { "aria-label": `Curve of ${name}` }),
        button("Reset", reset, { "aria-label": `Reset ${name}` }),
        button("Remove", remove, { "aria-label": `Remove ${name}` }),
      ),
    ),
    element("div", { class: "fader" }, element("div", { class: "scale" }), slider),
    value,
    element("div", { class: "marks", "aria-hidden": "true" }, ["−2", "−1", "0", "1", "2"].map((mark) => element("span", {}, mark))),
    element("div", { class: "poles" }, low, high),
    state,
  );

  function update() {
    const strength = steering.strengthOf(name);
    const calibrated = vectors.get(name)?.calibrated ?? false;
    const past = calibrated && Math.abs(strength) > 1;
    const { positive, negative } = vectors.poles(name);
    const toward = strength === 0 ? "off" : `toward ${strength > 0 ? positive : negative}`;
    slider.value = String(strength);
    root.style.setProperty("--value", String(Math.max(-2, Math.min(2, strength))));
    root.classList.toggle("calibrated", calibrated);
    root.classList.toggle("past", past);
    [value.textContent, low.textContent, high.textContent] = [signed(strength), negative, positive];
    state.textContent = past ? "▲ past the calibrated range" : vectors.state(name);
    slider.setAttribute("aria-valuetext", `${signed(strength)}, ${toward} ${state.textContent}`);
  }
  return { root, slider, update };
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
