/** Making and finding elements. Texts become text nodes, never HTML: models write them. */

/** @typedef {Record<string, unknown>} Properties attributes, and listeners by event */
/** @typedef {Node | string | (Node | string)[]} Child */

/** @template {keyof HTMLElementTagNameMap} T @param {T} tag @param {Properties} [properties] @param {...Child} children */
export const element = (tag, properties, ...children) => fill(document.createElement(tag), properties, children);

/** @template {keyof SVGElementTagNameMap} T @param {T} tag @param {Properties} [properties] @param {...Child} children */
export const shape = (tag, properties, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);

/** @template {Element} T @param {T} node @param {Properties} properties @param {Child[]} children @returns {T} */
function fill(node, properties = {}, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") node.addEventListener(name, /** @type {EventListener} */ (value));
    else node.setAttribute(name, String(value));
  }
  node.append(...children.flat());
  return node;
}

/** @param {string} id @returns {any} */
export const byId = (id) => document.getElementById(id);

/** @param {string} label @param {() => void} click @param {Properties} [properties] */
export const button = (label, click, properties) => element("button", { click, ...properties }, label);

/** A button that copies a text and says so. @param {() => string} text */
export function copyButton(text) {
  const made = button("Copy", async () => {
    // There is no clipboard where the page comes over plain HTTP from another machine.
    made.textContent = await navigator.clipboard?.writeText(text()).then(() => "Copied", () => "") || "Cannot copy";
    setTimeout(() => (made.textContent = "Copy"), 1500);
  }, { "aria-live": "polite" });
  return made;
}

/** With a sign, as people write it. @param {number} value */
export function signed(value, digits = 2) {
  const text = Math.abs(value).toFixed(digits);
  return Number(text) === 0 ? text : (value < 0 ? "−" : "+") + text;
}

/** What a reload finds again; null where there is nothing. @param {string} name @returns {any} */
export function load(name, session = false) {
  try {
    return JSON.parse((session ? sessionStorage : localStorage).getItem(`localsteer.${name}`) ?? "null");
  } catch {
    return null;
  }
}

/** @param {string} name @param {unknown} value @returns {boolean} whether it is kept: a browser may forbid it, or have no room */
export function save(name, value, session = false) {
  try {
    (session ? sessionStorage : localStorage).setItem(`localsteer.${name}`, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** @param {string} name */
export function forget(name) {
  try {
    localStorage.removeItem(`localsteer.${name}`);
  } catch {
    // There is nothing, then.
  }
}

/** The names of what is kept that begin so. @param {string} prefix */
export function keptNames(prefix) {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(`localsteer.${prefix}`)).map((key) => key.slice("localsteer.".length));
  } catch {
    return [];
  }
}
