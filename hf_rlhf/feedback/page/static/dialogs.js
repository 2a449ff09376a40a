// What opens over the page: keys, guidelines, the reason of a flag, a comment.
import { button, el, fill } from "./dom.js";

const dialog = document.querySelector("#dialog");
let keys = {};

dialog.addEventListener("keydown", (event) => {
  event.stopPropagation(); // a key that closes the dialog must not answer the task behind it
  if (event.target.matches("textarea")) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) keys["Ctrl+Enter"]?.();
    return;
  }
  const run = event.repeat || event.ctrlKey || event.metaKey || event.altKey ? null : keys[event.key.toLowerCase()];
  if (!run) return;
  event.preventDefault();
  run();
});
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside the dialog

export function open(title, content, { buttons = [], also = {} } = {}) {
  const close = button("Close", () => dialog.close(), { key: "Esc", class: buttons.length ? "quiet" : "" });
  fill(dialog, el("div", { class: "dialog" }, el("h2", { id: "dialog-title", tabindex: "-1" }, title), ...content,
    el("div", { class: "dialog-buttons" }, ...buttons, close)));
  keys = also;
  if (!dialog.open) dialog.showModal();
  (dialog.querySelector("[autofocus]") ?? dialog.querySelector("h2")).focus();
}

export const close = () => dialog.close();

export function help(ofForm) {
  const general = [
    ["u", "take back the last answer"], ["s", "skip"], ["f", "flag: harmful, broken or private"], ["c", "write a comment"],
    ["o", "show all of long texts"], ["m", "letters of one width, for code"], ["g", "guidelines"], ["?", "this list"],
  ];
  const table = (rows) => el("dl", { class: "keys" }, ...rows.flatMap(([pressed, does]) =>
    [el("dt", {}, ...pressed.split(" ").filter(Boolean).map((key) => (key === "…" ? "…" : el("kbd", {}, key)))), el("dd", {}, does)]));
  open("Keys", [
    ofForm.length ? el("h3", {}, "To answer") : null, ofForm.length ? table(ofForm) : null,
    el("h3", {}, "At any time"), table(general),
    el("p", { class: "hint" }, "While you write in a text field, keys write. Esc leaves the field."),
  ].filter(Boolean), { also: { "?": close } });
}

export function guidelines(text) {
  open("Guidelines", [el("div", { class: "text guidelines", dir: "auto", tabindex: "0" }, text)], { also: { g: close } });
}

const REASONS = [["harmful", "Harmful", "It could hurt somebody."], ["broken", "Broken", "It cannot be judged: cut off, empty, not a reply."],
  ["private", "Private", "It holds data about a real person."]];

export function flag(choose) {
  const take = (reason) => {
    close();
    choose(reason);
  };
  const list = REASONS.map(([reason, name, why], index) => el("li", {},
    button(name, () => take(reason), { key: String(index + 1), "aria-describedby": `why-${reason}` }), el("span", { id: `why-${reason}` }, why)));
  open("Flag this task", [el("p", {}, "A flagged task is not used for training."), el("ul", { class: "reasons" }, ...list)], {
    also: Object.fromEntries(REASONS.map(([reason], index) => [String(index + 1), () => take(reason)])),
  });
}

export function comment(text, keep) {
  const area = el("textarea", { rows: "4", dir: "auto", autofocus: true, maxlength: "10000", "aria-labelledby": "dialog-title" });
  area.value = text;
  const done = () => {
    close();
    keep(area.value);
  };
  open("Comment", [el("p", {}, "It is saved together with your answer to this task."), area], {
    buttons: [button("Keep the comment", done, { key: "Ctrl ⏎", class: "save", "aria-keyshortcuts": "Control+Enter" })], also: { "Ctrl+Enter": done },
  });
}
