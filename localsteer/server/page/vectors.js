import { askJSON } from "./api.js";

/**
 * @typedef {{id: string, positive: string, negative: string, description: string, calibrated: boolean, dosed: boolean,
 *   tried: Record<"positive" | "negative", number | null> | null, state: "ready" | "being built" | "built at first use"}} Vector
 *   `tried`: the strongest strengths that were measured on this model, toward each pole
 * @typedef {{positive: string, negative: string}} Poles
 */

// Where nothing was measured, and the most and the least that a knob has room for beyond strength 1: what was tried on the way to a dose
// may be twenty times as strong, and some doses were not gone beyond.
const [UNKNOWN, LEAST, MOST] = [2, 1.5, 4];

/** The vectors that the server has, and those that it is building now. Tells of a "change". */
class Vectors extends EventTarget {
  /** @type {Vector[]} */
  list = [];
  /** @type {Set<string>} */
  building = new Set();

  async load() {
    this.list = (await askJSON("/v1/vectors")).data;
    this.#changed();
  }

  /** @param {string} name */
  get(name) {
    return this.list.find((vector) => vector.id === name);
  }

  /** @param {string} name @returns {Poles} */
  poles(name) {
    const vector = this.get(name);
    return { positive: vector?.positive || `more ${name}`, negative: vector?.negative || `less ${name}` };
  }

  /** What there is to say of its state; "" where nothing. @param {string} name */
  state(name) {
    const vector = this.get(name);
    const built = this.building.has(name) ? "being built now ..." : vector?.state.replace("ready", "");
    const ready = !vector || vector.state === "ready";
    const known = !ready || vector?.calibrated ? "" : vector?.dosed ? "not calibrated" : "never measured on this model";
    return [known, built].filter(Boolean).join(", ");
  }

  /** How far a knob goes: as far as it was measured on this model. @param {string} name @returns {{low: number, high: number, measured: boolean}} */
  range(name) {
    const tried = this.get(name)?.tried;
    if (!tried) return { low: -UNKNOWN, high: UNKNOWN, measured: false };
    const end = (/** @type {number | null} */ most) => Math.min(MOST, Math.max(LEAST, Math.floor((most ?? 1) * 20) / 20));
    return { low: -end(tried.negative), high: end(tried.positive), measured: true };
  }

  /**
   * A request names these vectors, and waits for those that are not built yet.
   * @param {string[]} names
   * @returns {{words: string, over: () => void}} what it waits for; what to call when it waits no more
   */
  expect(names) {
    const waits = names.filter((name) => (this.get(name)?.state ?? "ready") !== "ready");
    if (!waits.length) return { words: "", over() {} };
    for (const name of waits) this.building.add(name);
    this.#changed();
    const over = () => {
      if (!waits.filter((name) => this.building.delete(name)).length) return;
      this.#changed();
      this.load().catch(() => {});
    };
    return { words: `Building ${waits.join(" and ")} for this model. This happens once.`, over };
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

export const vectors = new Vectors();
