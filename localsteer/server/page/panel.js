/** The steering panel around the knobs. */

import { askJSON } from "./api.js";
import { button, byId, copyButton, load, save } from "./elements.js";
import { setUpKnobs } from "./knobs.js";
import { steering } from "./steering.js";
import { vectors } from "./vectors.js";

/** @param {(name: string) => void} sweep asks for a sweep of a vector */
export function setUpPanel(sweep) {
  const close = setUpOpening();
  setUpExpression();
  setUpKnobs((name) => {
    close();
    sweep(name);
  });
  setUpDefault();
}

function setUpExpression() {
  const field = byId("expression");
  byId("expression-actions").append(copyButton(() => steering.text), button("All off", () => steering.write("")));
  field.oninput = () => steering.write(field.value.replaceAll("\n", " "));

  function update() {
    const unknown = steering.names.filter((name) => vectors.list.length && !vectors.get(name));
    const problem = steering.problem || (unknown.length ? `Not among the server's vectors: ${unknown.join(", ")}.` : "");
    if (field.value !== steering.text) field.value = steering.text;
    field.setAttribute("aria-invalid", String(problem !== ""));
    byId("expression-note").textContent = problem;
    byId("now").textContent = steering.text || "all off";
  }
  steering.addEventListener("change", () => save("expression", steering.text));
  steering.addEventListener("change", update);
  vectors.addEventListener("change", update);
}

async function setUpDefault() {
  let current = "";

  /** @param {{method: string, body: object}} [change] */
  async function ask(change) {
    try {
      const { steering: expression, relative_dose, notes } = await askJSON("/v1/steering", change);
      const dose = relative_dose ? `, relative dose ${relative_dose.toFixed(2)}` : "";
      current = expression;
      byId("default-now").textContent = [`${current || "Nothing is steered"}${dose}.`, ...notes].join(" ");
      byId("default-problem").textContent = "";
    } catch (error) {
      byId("default-problem").textContent = /** @type {Error} */ (error).message;
    }
  }

  byId("set-default").onclick = () => ask({ method: "PUT", body: { steering: steering.text } });
  byId("use-default").onclick = () => steering.write(current);
  const kept = load("expression");
  steering.write(kept ?? "");
  await ask();
  if (kept === null && !steering.text) steering.write(current);
}

/** Where the window is narrow, the panel covers the conversation while it is open. @returns {() => void} closes it there */
function setUpOpening() {
  const wide = matchMedia("(min-width: 60rem)");

  /** @param {boolean} open */
  function show(open) {
    byId("steering").classList.toggle("open", open);
    byId("main").inert = open;
    byId("open-knobs").setAttribute("aria-expanded", String(open));
    byId(open ? "close-knobs" : "open-knobs").focus();
  }

  byId("open-knobs").onclick = () => show(true);
  byId("close-knobs").onclick = () => show(false);
  byId("steering").onkeydown = (/** @type {KeyboardEvent} */ { key }) => {
    if (key === "Escape" && !wide.matches) show(false);
  };
  wide.onchange = () => show(false);
  return () => {
    if (!wide.matches) show(false);
  };
}
