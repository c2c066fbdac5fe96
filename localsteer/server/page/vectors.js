import { askJSON } from "./api.js";

/**
 * @typedef {{id: string, positive: string, negative: string, description: string, calibrated: boolean,
 *   state: "ready" | "being built" | "built at first use"}} Vector
 * @typedef {{positive: string, negative: string}} Poles
 */

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
    return [vector?.calibrated ? "" : "not calibrated", built].filter(Boolean).join(", ");
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
