// Keys. They are off while a text field has the focus, except Ctrl+Enter (save) and Escape (leave the field).

const TEXT_FIELD = "textarea, select, [contenteditable], input:not([type=radio], [type=checkbox])";
const SETTLE = 150; // milliseconds in which a key or click that was meant for the last task does not answer this one

let layers = [];
let since = 0;

export function useKeys(...maps) {
  layers = maps;
}

export function settle() {
  since = performance.now();
}

export const settled = () => performance.now() - since >= SETTLE;

function binding(key) {
  for (const layer of layers) if (layer[key]) return layer[key];
  return null;
}

addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.isComposing) return;
  const inText = event.target instanceof Element && event.target.matches(TEXT_FIELD);
  let key = event.key.length === 1 && !event.shiftKey ? event.key.toLowerCase() : event.key;
  if (event.shiftKey && key.startsWith("Arrow")) key = `Shift+${key}`;
  if (event.ctrlKey || event.metaKey) key = `Ctrl+${key}`;
  if (event.altKey) return;
  if (inText && key === "Escape") event.target.blur();
  if (inText && key !== "Ctrl+Enter") return;
  const pressed = event.target instanceof Element ? event.target.closest("button, summary, a") : null;
  if (pressed && key === "Enter") return; // Enter presses what has the focus
  const digit = /^Digit\d$/.test(event.code) && !event.shiftKey ? event.code[5] : ""; // AZERTY types & for 1
  const run = binding(key) ?? (key === "Ctrl+Enter" ? binding("Enter") : binding(digit));
  if (!run) return;
  event.preventDefault();
  if (!event.repeat || key.includes("Arrow")) run(event);
});
