// The reply as the annotator would have written it, beside what changes.
import { button, el, newId } from "../dom.js";
import { differences } from "../text.js";

const WORDS = { same: null, gone: "del", new: "ins" };

export function correction(task, { answer, before }) {
  const original = task.completions[0][0].content;
  const id = newId("edit");
  const field = el("textarea", { id, class: "edit", spellcheck: "true", dir: "auto", rows: "8", maxlength: "100000" });
  const initial = before?.text ?? original;
  field.value = initial;
  const shown = field.value; // a text field turns CR LF into LF
  const changes = el("div", { class: "text changes", dir: "auto" });
  const save = button("Save", () => submit(), { key: "Ctrl ⏎", class: "save", "aria-keyshortcuts": "Control+Enter" });
  const summary = el("p", { class: "summary" });
  let timer = null;

  const text = () => (field.value === shown ? initial : field.value);

  function compare() {
    const changed = text() !== original;
    const parts = changed ? differences(original, text()) : [["same", original]];
    changes.replaceChildren(...parts.map(([kind, words]) => (WORDS[kind] ? el(WORDS[kind], {}, words) : document.createTextNode(words))));
    save.firstChild.data = changed ? "Save the correction" : "It is good as it is";
    save.disabled = text().trim() === "";
    summary.textContent = save.disabled ? "A correction has some text. Skip the task if there is none."
      : changed ? "" : "Edit the text, or save it as it is.";
  }

  function submit() {
    compare();
    if (!save.disabled) answer({ text: text() }, text() === original ? "good as it is" : "the correction");
  }

  field.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(compare, 80);
  });
  compare();
  return {
    question: "Correct this reply",
    content: [el("div", { class: "replies count-2" },
      el("article", { class: "reply" }, el("h2", { class: "single" }, el("label", { for: id }, "Your version"), el("kbd", { "aria-hidden": "true" }, "e")), field),
      el("article", { class: "reply", "aria-label": "Changes" }, el("h2", { class: "single" }, "Changes"), changes))],
    answers: el("div", { class: "line" }, summary, save),
    keys: { e: () => field.focus(), Enter: submit },
    help: [["e", "edit the text"], ["Esc", "leave the text"], ["Ctrl ⏎", "save"]],
  };
}
