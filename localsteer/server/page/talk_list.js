/** The list of conversations: open, rename, delete. */

import { button, byId, element } from "./elements.js";
import { talks } from "./talks.js";

/** @import {Talk} from "./talks.js" */

/**
 * @param {{current: () => Talk, open: (talk: Talk) => void, removed: () => void}} chat `removed`: the current one is kept no more
 */
export function setUpTalkList({ current, open, removed }) {
  const [dialog, list, nothing] = ["talks", "talk-list", "keep-nothing"].map(byId);

  /** While an answer is written this comes every few seconds; nothing is replaced under the hand of who renames, deletes, or is about to. */
  function update() {
    byId("talk-problem").textContent = talks.problem;
    if (dialog.open && !dialog.querySelector("#talk-list :focus, #delete-all :focus, [data-sure]")) draw();
  }

  function draw() {
    nothing.checked = talks.keepsNothing;
    const kept = talks.list();
    list.replaceChildren(...kept.map(entry));
    byId("no-talks").hidden = kept.length > 0;
    byId("delete-all").replaceChildren(...(kept.length ? [deleteButton("Delete all", kept)] : []));
  }

  /** @param {Talk} talk */
  function entry(talk) {
    const chosen = talk.id === current().id;
    const pick = () => {
      dialog.close();
      if (!chosen) open(talk);
    };
    const when = new Date(talk.changed).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    const about = `${when}, ${talk.turns.length === 1 ? "1 question" : `${talk.turns.length} questions`}${chosen ? ", open now" : ""}`;
    const opens = element("button", { class: "entry", click: pick, ...(chosen && { "aria-current": "true" }) }, element("b", {}, talk.title), element("small", {}, about));
    const acts = element("span", { class: "actions" }, button("Rename", () => rename(talk, item, opens), { "aria-label": `Rename ${talk.title}` }), deleteButton("Delete", [talk]));
    const item = element("li", {}, opens, acts);
    return item;
  }

  /** @param {Talk} talk @param {Element} item @param {Element} opens */
  function rename(talk, item, opens) {
    const field = element("input", { type: "text", value: talk.title, "aria-label": "Title", maxlength: 200 });
    const done = (title = field.value) => {
      field.onblur = null; // which comes once more as the field goes
      if (title !== talk.title) talks.rename(talk.id, title);
      draw();
    };
    field.onblur = () => done();
    field.onkeydown = (event) => {
      if (event.key === "Enter") done();
      if (event.key !== "Escape") return;
      event.preventDefault(); // the list stays open
      done(talk.title);
    };
    opens.replaceWith(field);
    item.querySelector(".actions")?.remove();
    field.select();
  }

  /** What cannot be had back is asked for twice. @param {string} label @param {Talk[]} gone */
  function deleteButton(label, gone) {
    const name = gone.length === 1 && label === "Delete" ? ` ${gone[0].title}` : "";
    const made = button(label, () => {
      if (!made.dataset.sure) {
        made.dataset.sure = "asked";
        made.textContent = "For good?";
        made.setAttribute("aria-label", `${label}${name} for good`);
        return;
      }
      const lost = gone.some(({ id }) => id === current().id);
      talks.remove(gone);
      draw();
      if (lost) removed();
      dialog.querySelector(".close").focus();
    }, { "aria-label": `${label}${name}` });
    return made;
  }

  nothing.onchange = () => {
    talks.keepNothing(nothing.checked, current());
    draw();
  };
  talks.addEventListener("change", update);
  byId("open-talks").onclick = () => {
    dialog.showModal();
    draw();
  };
}
