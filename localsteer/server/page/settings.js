import { byId, load, save } from "./elements.js";

/** What requests carry besides the steering; null is as the server likes. @type {Record<string, any>} */
export const settings = {
  system: "", temperature: null, max_tokens: null, seed: null, scope: "", ...load("settings"),
};

/** What is steered, as requests say it. */
export const scope = () => ({
  steer_prompt: settings.scope === "prompt", anchored: settings.scope ? settings.scope === "anchored" : null, scope: undefined,
});

/** The settings drawer. */
export function setUpSettings() {
  const dialog = byId("settings");

  /** @param {HTMLInputElement} field */
  function read({ type, name, value, validity, validationMessage }) {
    byId("settings-problem").textContent = validationMessage && `${name.replace("_", " ")}: ${validationMessage}`;
    if (!validity.valid) return;
    settings[name] = type === "number" ? (value === "" ? null : Number(value)) : value;
    save("settings", settings);
  }

  for (const field of dialog.querySelectorAll("[name]")) {
    field.value = settings[field.name] ?? "";
    field.oninput = () => read(field);
  }
  byId("open-settings").onclick = () => dialog.showModal();
}
