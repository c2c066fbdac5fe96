import { byId, load, save } from "./elements.js";

/** What requests carry besides the steering; null is as the server likes. @type {Record<string, any>} */
export const settings = {
  system: "", temperature: null, max_tokens: null, seed: null, steer_prompt: false, anchored: null, ...load("settings"),
};

/** The settings drawer. */
export function setUpSettings() {
  const dialog = byId("settings");

  /** @param {HTMLInputElement} field */
  function read({ type, name, value, checked, validity, validationMessage }) {
    byId("settings-problem").textContent = validationMessage && `${name.replace("_", " ")}: ${validationMessage}`;
    if (!validity.valid) return;
    if (name === "anchored") settings.anchored = checked || null;
    else settings[name] = type === "checkbox" ? checked : type === "number" ? (value === "" ? null : Number(value)) : value;
    save("settings", settings);
  }

  for (const field of dialog.querySelectorAll("[name]")) {
    field.value = settings[field.name] ?? "";
    field.checked = settings[field.name];
    field.oninput = () => read(field);
  }
  byId("open-settings").onclick = () => dialog.showModal();
}
