/** Conversations, kept in this browser: each under a name of its own, so that tabs do not write over one another's. */

import { forget, keptNames, load, save } from "./elements.js";

/** @import {Turn} from "./turn.js" */
/** @typedef {{id: string, title: string, changed: number, turns: Turn[]}} Talk `changed`: milliseconds since 1970; 0 where it never was */

const PREFIX = "talk.";
const LONGEST_TITLE = 60;

/** Tells of a "change" of what is kept. */
class Talks extends EventTarget {
  /** Why the latest conversation is not kept; "" where it is. */
  problem = "";
  /** What this tab was told last: it counts where the browser keeps nothing anyway. */
  #keepsNothing = false;
  /** Those that were removed while they may still be written. @type {Set<string>} */
  #removed = new Set();

  /** Other tabs switch it, too. */
  get keepsNothing() {
    return Boolean(load("keepsNothing") ?? this.#keepsNothing);
  }

  /** @returns {Talk} */
  begin() {
    save("talk", null, true);
    return { id: crypto.getRandomValues(new Uint32Array(2)).join("-"), title: "", changed: 0, turns: [] };
  }

  /** The one that this tab had before it was loaded anew. */
  resume() {
    return this.open(load("talk", true)) ?? this.begin();
  }

  /** @param {string | null} id @returns {Talk | null} */
  open(id) {
    const talk = id ? load(PREFIX + id) : null;
    if (talk) save("talk", id, true);
    return talk;
  }

  /** All that are kept, the latest first. @returns {Talk[]} */
  list() {
    return keptNames(PREFIX).map((name) => load(name)).filter(Boolean).sort((one, other) => other.changed - one.changed);
  }

  /** @param {Talk} talk */
  keep(talk) {
    if (this.keepsNothing || !talk.turns.length || this.#removed.has(talk.id)) return;
    const there = load(PREFIX + talk.id);
    if (talk.changed && !there) return this.#tell("This conversation was deleted in another tab, and is kept no more. \"New chat\" begins another one.");
    // Another tab may go on with the same one: then there are two.
    if (talk.changed && there.changed !== talk.changed) Object.assign(talk, { id: this.begin().id, changed: 0 });
    talk.title = there?.title || talk.title || titleOf(talk.turns[0].user);
    save("talk", talk.id, true);
    const kept = { ...talk, changed: Date.now() };
    const isKept = save(PREFIX + talk.id, kept);
    if (isKept) talk.changed = kept.changed;
    this.#tell(isKept ? "" : "This conversation is not kept: the browser has no room left, or forbids it. Deleting others may help.");
  }

  /** The title alone: another tab may have gone on with it meanwhile, or deleted it. @param {string} id @param {string} title */
  rename(id, title) {
    const talk = load(PREFIX + id);
    if (talk) save(PREFIX + id, { ...talk, title: title.trim() || titleOf(talk.turns[0].user) });
    this.#tell();
  }

  /** @param {Talk[]} talks */
  remove(talks) {
    for (const { id } of talks) {
      this.#removed.add(id);
      forget(PREFIX + id);
    }
    this.#tell();
  }

  /** From now on, the current one included; others stay until they are deleted. @param {boolean} nothing @param {Talk} current */
  keepNothing(nothing, current) {
    this.#keepsNothing = nothing;
    save("keepsNothing", nothing);
    if (nothing) {
      forget(PREFIX + current.id);
      current.changed = 0;
    } else this.keep(current);
    this.#tell();
  }

  #tell(problem = "") {
    this.problem = problem;
    this.dispatchEvent(new Event("change"));
  }
}

/** @param {string} question */
function titleOf(question) {
  const line = question.trim().split("\n")[0];
  return line.length > LONGEST_TITLE ? `${line.slice(0, LONGEST_TITLE).trimEnd()} ...` : line;
}

export const talks = new Talks();
