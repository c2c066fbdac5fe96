import { askJSON } from "./api.js";
import { setUpChat } from "./chat.js";
import { button, byId } from "./elements.js";
import { setUpPanel } from "./panel.js";
import { setUpSettings } from "./settings.js";
import { vectors } from "./vectors.js";

for (const close of document.querySelectorAll("dialog .close")) close.addEventListener("click", () => close.closest("dialog")?.close());
setUpSettings();
setUpPanel(setUpChat());
begin();

async function begin() {
  const problem = byId("vectors-problem");
  problem.textContent = "";
  try {
    await vectors.load();
    byId("model").textContent = (await askJSON("/v1/models")).data[0].id;
  } catch (error) {
    problem.append(/** @type {Error} */ (error).message, " ", button("Try again", begin));
  }
}
