/** Talking to the server (docs/server.md). */

import { byId, load, save } from "./elements.js";

/**
 * @typedef {{term: string, vector: string, removed: boolean, phase: string, layers: number[], relative_dose: number | null, worth: string | null}} Term
 * @typedef {{expression: string, scope: "response" | "prompt" | "anchored", relative_dose: number | null, notes: string[], terms: Term[]}} Applied
 * @typedef {{action: string, position: number, rule?: string, classifier?: string, score?: number | null,
 *   threshold?: number, strength?: number, steer?: string, detail?: string}} Decision of a policy
 * @typedef {{choices?: {delta?: {content?: string, reasoning_content?: string}, finish_reason?: string | null}[], policy?: Decision[], steering?: Applied,
 *   timing?: {tokens_per_second: number}, error?: {message: string}}} Chunk of a streamed answer
 * @typedef {{method?: string, body?: unknown, signal?: AbortSignal}} Options
 */

let key = load("key", true);
/** @type {Promise<boolean> | undefined} */
let asking;

/** @param {string} path @param {Options} [options] @returns {Promise<any>} */
export const askJSON = async (path, options) => (await request(path, options)).json();

/** A streamed answer. @param {object} body @param {AbortSignal} signal @returns {AsyncGenerator<Chunk>} */
export async function* streamChat(body, signal) {
  const response = await request("/v1/chat/completions", { method: "POST", body: { ...body, stream: true }, signal });
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    yield chunk;
  }
  throw new Error("The answer broke off: the server has gone.");
}

/** The data of server-sent events; this server's are one line each. @param {Response} response */
async function* events(response) {
  const reader = /** @type {ReadableStream} */ (response.body).pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch(lost);
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}

/** @param {string} path @param {Options} [options] @returns {Promise<Response>} one that is ok */
async function request(path, options = {}) {
  const shown = key;
  const response = await send(path, options);
  if (response.ok) return response;
  const error = await refusal(response);
  // Another request may have got a key meanwhile.
  if (response.status === 401 && (shown !== key || (await haveKey()))) return request(path, options);
  throw error;
}

/** @param {string} path @param {Options} options */
function send(path, { body, ...options }) {
  const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...(body ? { "Content-Type": "application/json" } : {}) };
  return fetch(path, { ...options, headers, body: body ? JSON.stringify(body) : undefined }).catch(lost);
}

/** @param {Error} error @returns {never} */
function lost(error) {
  throw error.name === "AbortError" ? error : new Error("The server cannot be reached. Is it still running?");
}

/** @param {Response} response */
async function refusal(response) {
  const document = await response.json().catch(() => null);
  const seconds = Number(response.headers.get("Retry-After"));
  const message = document?.error?.message ?? `The server answered ${response.status}.`;
  return new Error(seconds > 0 ? `${message} Try again in ${seconds} s.` : message);
}

/** Several requests may need a key at once; a person is asked once. */
function haveKey() {
  asking ??= askForKey().finally(() => (asking = undefined));
  return asking;
}

/** @returns {Promise<boolean>} whether there is one now */
function askForKey() {
  const [dialog, field, note] = ["key", "api-key", "key-note"].map(byId);
  if (key) note.textContent = "That key was refused.";
  field.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(false), { once: true });
    byId("key-form").onsubmit = (/** @type {Event} */ event) => {
      event.preventDefault();
      key = field.value;
      save("key", key, true);
      resolve(true);
      dialog.close();
    };
  });
}
