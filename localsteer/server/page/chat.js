/** The conversation. */

import { streamChat } from "./api.js";
import { newAnswer, showAnswer } from "./answer.js";
import { button, byId, element, load, save } from "./elements.js";
import { scope, settings } from "./settings.js";
import { steering } from "./steering.js";
import { vectors } from "./vectors.js";

/** @import {Answer} from "./answer.js" */
/** @typedef {{user: string, steered: Answer, unsteered: Answer | null}} Turn */
/** @typedef {ReturnType<typeof showAnswer>} View */

/** So close to its end, in pixels, the conversation follows what is written. */
const FOLLOWS = 80;

export function setUpChat() {
  const [log, list, message, compare] = ["log", "turns", "message", "compare"].map(byId);
  /** @type {Turn[]} */
  let turns = load("turns") ?? [];
  /** @type {AbortController | null} */
  let answering = null;

  const keep = () => save("turns", turns);
  const stop = () => answering?.abort();

  /** @param {string} [text] */
  function send(text = message.value) {
    message.focus();
    if (!text.trim() || answering) return;
    message.value = "";
    fit();
    reply(text.trim());
  }

  /** The last message once more, steered as the knobs stand now. */
  function again() {
    message.focus();
    list.lastElementChild.remove();
    reply(/** @type {Turn} */ (turns.pop()).user);
  }

  function clear() {
    stop();
    turns = [];
    list.replaceChildren();
    keep();
    message.focus();
  }

  /** Side by side both have one seed: what differs comes from the steering alone. @param {string} user */
  async function reply(user) {
    const seed = settings.seed ?? crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
    const messages = [...history(), { role: "user", content: user }];
    const turn = { user, steered: newAnswer(steering.text, seed), unsteered: compare.checked ? newAnswer("", seed) : null };
    turns.push(turn);
    const views = show(turn);
    log.scrollTop = log.scrollHeight;
    answering = new AbortController();
    const { signal } = answering;
    setBusy(true);
    await Promise.all(views.map((view) => stream(view, messages, signal)));
    answering = null;
    setBusy(false);
    keep();
  }

  /** @param {View} view @param {object[]} messages @param {AbortSignal} signal */
  async function stream(view, messages, signal) {
    const { asked, seed } = view.answer;
    const { words, over } = vectors.expect(asked ? steering.names : []);
    view.wait(words);
    try {
      for await (const chunk of streamChat({ ...settings, ...scope(), system: undefined, messages, steering: asked, seed }, signal)) {
        over();
        follow(() => view.take(chunk));
      }
      follow(() => view.end("done"));
    } catch (error) {
      const { message } = /** @type {Error} */ (error);
      follow(() => (signal.aborted ? view.end("stopped") : view.end("failed", message)));
    } finally {
      over();
    }
  }

  /** What was answered so far: templates want users and assistants by turns. */
  function history() {
    const system = settings.system.trim();
    const answered = turns.filter((turn) => turn.steered.text);
    return [
      ...(system ? [{ role: "system", content: system }] : []),
      ...answered.flatMap(({ user, steered }) => [{ role: "user", content: user }, { role: "assistant", content: steered.text }]),
    ];
  }

  /** @param {Turn} turn @returns {View[]} */
  function show({ user, steered, unsteered }) {
    const views = [showAnswer(steered, unsteered ? "Steered" : "")];
    if (unsteered) views.push(showAnswer(unsteered, "Unsteered"));
    const answers = element("div", { class: unsteered ? "answers two" : "answers" }, views.map((view) => view.root));
    const repeat = button("Answer again", again, { class: "again" });
    list.append(element("li", { class: "turn" }, element("p", { class: "user" }, user), answers, repeat));
    return views;
  }

  /** @param {boolean} busy */
  function setBusy(busy) {
    const lost = document.activeElement?.id === "stop";
    // Screen readers are told the whole answer, not each token.
    log.ariaBusy = String(busy);
    byId("chat-status").textContent = busy ? "Answering" : "Answered";
    byId("send").hidden = busy;
    byId("stop").hidden = !busy;
    if (lost) message.focus();
  }

  /** @param {() => void} write */
  function follow(write) {
    const follows = log.scrollHeight - log.scrollTop - log.clientHeight < FOLLOWS;
    write();
    if (follows) log.scrollTop = log.scrollHeight;
  }

  function fit() {
    message.style.height = "auto";
    message.style.height = `${message.scrollHeight + 2}px`;
  }

  for (const turn of turns) {
    for (const answer of [turn.steered, turn.unsteered]) if (answer?.state === "open") answer.state = "stopped";
    show(turn);
  }
  log.scrollTop = log.scrollHeight;
  compare.checked = load("compare") ?? false;
  compare.onchange = () => save("compare", compare.checked);
  byId("questions").onclick = (/** @type {any} */ { target }) => {
    if (target.localName === "button") send(target.textContent);
  };
  byId("send").onclick = () => send();
  byId("stop").onclick = stop;
  byId("new-chat").onclick = clear;
  message.oninput = fit;
  message.onkeydown = (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  };
  document.addEventListener("keydown", (event) => event.key === "Escape" && !document.querySelector("dialog[open]") && stop());
  // Else the browser would cut the connection, and the answer would seem to have failed.
  window.addEventListener("beforeunload", stop);
  window.addEventListener("pagehide", keep);
}
