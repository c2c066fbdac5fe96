/** The conversation. */

import { streamChat } from "./api.js";
import { byId, load, save } from "./elements.js";
import { scope, settings } from "./settings.js";
import { namesIn } from "./steering.js";
import { command, setUpSweep } from "./sweep.js";
import { setUpTalkList } from "./talk_list.js";
import { talks } from "./talks.js";
import { answerFor, mainAnswer, newSweep, newTurn, showTurn } from "./turn.js";
import { vectors } from "./vectors.js";

/** @import {Answer, Kind} from "./answer.js" */
/** @import {Turn, View} from "./turn.js" */
/** @import {Sweep} from "./sweep.js" */

/** So close to its end, in pixels, the conversation follows what is written. */
const FOLLOWS = 80;
/** Milliseconds after which what is being written is kept again. */
const KEEPS = 2000;

/** @returns {(vector: string) => void} asks for a sweep of a vector */
export function setUpChat() {
  const [log, list, message, compare, problem] = ["log", "turns", "message", "compare", "message-problem"].map(byId);
  let talk = talks.resume();
  /** @type {AbortController | null} */
  let answering = null;
  const acts = { again, compare: () => change(compared), sweep: () => openSweep() };
  const openSweep = setUpSweep({ asked: () => talk.turns.length > 0 && !answering, begin: sweep });

  const stop = () => answering?.abort();

  /** @param {string} [text] */
  function send(text = message.value) {
    message.focus();
    problem.textContent = "";
    if (!text.trim() || answering) return;
    try {
      const asked = command(text.trim());
      if (asked && !talk.turns.length) throw new SyntaxError("Ask something first: this answers the last question.");
      message.value = "";
      fit();
      if (asked === "compare") change(compared);
      else if (asked) sweep(asked);
      else reply(newTurn(text.trim(), { compared: compare.checked, seed: newSeed() }));
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
      problem.textContent = error.message;
    }
  }

  const newSeed = () => settings.seed ?? crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;

  /** The last message once more, steered as the knobs stand now. */
  function again() {
    message.focus();
    change(({ user }) => newTurn(user, { compared: compare.checked, seed: newSeed() }));
  }

  /** @param {Turn} turn */
  const compared = (turn) => ({ ...newTurn(turn.user, { compared: true, seed: mainAnswer(turn).seed, before: turn }), sweep: turn.sweep });

  /** @param {Sweep} wanted */
  function sweep({ vector, strengths }) {
    change((turn) => ({ ...turn, sweep: newSweep(turn, vector, strengths) }));
  }

  /** Answer the last question otherwise. @param {(turn: Turn) => Turn} changed */
  function change(changed) {
    if (answering || !talk.turns.length) return;
    list.lastElementChild.remove();
    reply(changed(/** @type {Turn} */ (talk.turns.pop())));
  }

  /** All its answers that are open are written at once. @param {Turn} turn */
  async function reply(turn) {
    const own = talk;
    const before = [...own.turns];
    own.turns.push(turn);
    const views = show(turn).filter(({ answer }) => answer.state === "open");
    log.scrollTop = log.scrollHeight;
    answering = new AbortController();
    const { signal } = answering;
    setBusy(true);
    talks.keep(own);
    const keeping = setInterval(() => talks.keep(own), KEEPS);
    await Promise.all(views.map((view) => stream(view, [...history(before, view.answer.kind), { role: "user", content: turn.user }], signal)));
    clearInterval(keeping);
    answering = null;
    setBusy(false);
    talks.keep(own);
  }

  /** @param {View} view @param {object[]} messages @param {AbortSignal} signal */
  async function stream(view, messages, signal) {
    const { asked, seed } = view.answer;
    const { words, over } = vectors.expect(namesIn(asked));
    view.wait(words || "Waits for its first word ...");
    try {
      for await (const chunk of streamChat({ ...settings, ...scope(), system: undefined, messages, steering: asked, seed }, signal)) {
        over();
        view.take(chunk);
      }
      view.end("done");
    } catch (error) {
      const { message } = /** @type {Error} */ (error);
      if (signal.aborted) view.end("stopped");
      else view.end("failed", message);
    } finally {
      over();
    }
  }

  /** What was said so far: templates want users and assistants by turns. @param {Turn[]} turns @param {Kind} kind */
  function history(turns, kind) {
    const system = settings.system.trim();
    const answered = turns.filter((turn) => mainAnswer(turn).text);
    return [
      ...(system ? [{ role: "system", content: system }] : []),
      ...answered.flatMap((turn) => [{ role: "user", content: turn.user }, { role: "assistant", content: answerFor(turn, kind).text }]),
    ];
  }

  /** @param {Turn} turn @returns {View[]} */
  function show(turn) {
    const { root, views } = showTurn(turn, acts, follow);
    list.append(root);
    return views;
  }

  /** Another conversation, or a new one. */
  function turnTo(other = talks.begin()) {
    stop();
    talk = other;
    list.replaceChildren();
    for (const turn of talk.turns) {
      for (const answer of [...turn.answers, ...(turn.sweep?.answers ?? [])]) if (answer.state === "open") answer.state = "stopped";
      show(turn);
    }
    log.scrollTop = log.scrollHeight;
    problem.textContent = "";
    message.focus();
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

  setUpTalkList({ current: () => talk, open: ({ id }) => turnTo(talks.open(id) ?? undefined), removed: () => turnTo() });
  turnTo(talk);
  compare.checked = load("compare") ?? false;
  compare.onchange = () => save("compare", compare.checked);
  byId("questions").onclick = (/** @type {any} */ { target }) => {
    if (target.localName === "button") send(target.textContent);
  };
  byId("send").onclick = () => send();
  byId("stop").onclick = stop;
  byId("new-chat").onclick = () => turnTo();
  message.oninput = fit;
  message.onkeydown = (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  };
  document.addEventListener("keydown", (event) => event.key === "Escape" && !document.querySelector("dialog[open]") && stop());
  // Else the browser would cut the connection, and the answer would seem to have failed.
  window.addEventListener("beforeunload", stop);
  window.addEventListener("pagehide", () => answering && talks.keep(talk));
  return openSweep;
}
