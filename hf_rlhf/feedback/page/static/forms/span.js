// Passages of a reply, each with a label. Chosen with the pointer, or word by word with the arrow keys.
import { button, el } from "../dom.js";
import { toCodePoints, toUnits } from "../text.js";

const WORD = /\S+/g;

export function span(task, { answer, before }) {
  const text = task.completions[0][0].content;
  const { labels } = task.form;
  let spans = (before?.spans ?? []).map((each) => ({
    start: toUnits(text, each.start), end: toUnits(text, each.end), label: each.label,
  }));
  const words = [...text.matchAll(WORD)].map((match) => [match.index, match.index + match[0].length]);
  let cursor = null; // first and last word that the arrow keys have chosen
  const block = el("div", { class: "text spans", dir: "auto", tabindex: "0", role: "group", "aria-label": "Text of the reply: choose words with the arrow keys" });
  const list = el("ul", { class: "marks", "aria-label": "Marked passages" });
  const hint = el("p", { class: "summary", "aria-live": "polite" });
  const save = button("Save", () => submit(), { key: "⏎", class: "save" });
  const labelButtons = labels.map((label, index) => button(label, () => mark(index), {
    key: index < 9 ? String(index + 1) : "", class: `label-${index % 6}`,
  }));
  labelButtons.forEach((each) => each.addEventListener("mousedown", (event) => event.preventDefault())); // keeps the selection

  function selected() {
    const range = getSelection().rangeCount ? getSelection().getRangeAt(0) : null;
    if (range && !range.collapsed && block.contains(range.startContainer) && block.contains(range.endContainer)) {
      return [offset(range.startContainer, range.startOffset), offset(range.endContainer, range.endOffset)];
    }
    return cursor === null ? null : [words[Math.min(...cursor)][0], words[Math.max(...cursor)][1]];
  }

  function offset(node, at) {
    const range = document.createRange();
    range.setStart(block, 0);
    range.setEnd(node, at);
    return range.toString().length;
  }

  function mark(index) {
    const chosen = selected();
    if (!chosen) {
      hint.textContent = "First select a passage of the text, with the pointer or the arrow keys.";
      return;
    }
    let [start, end] = chosen;
    while (start < end && /\s/.test(text[start])) start += 1;
    while (end > start && /\s/.test(text[end - 1])) end -= 1;
    if (/[\udc00-\udfff]/.test(text[start] ?? "") && /[\ud800-\udbff]/.test(text[start - 1] ?? "")) start -= 1;
    if (/[\udc00-\udfff]/.test(text[end] ?? "") && /[\ud800-\udbff]/.test(text[end - 1] ?? "")) end += 1;
    if (start >= end) return;
    const added = { start, end, label: labels[index] };
    spans = [...spans.filter((each) => !(each.start === start && each.end === end)), added];
    getSelection().removeAllRanges();
    draw();
  }

  function remove(each) {
    spans = spans.filter((other) => other !== each);
    draw();
  }

  function move(by, extend) {
    if (!words.length) return;
    getSelection().removeAllRanges();
    const at = cursor === null ? (by > 0 ? 0 : words.length - 1) : Math.min(Math.max(cursor[1] + by, 0), words.length - 1);
    cursor = extend && cursor !== null ? [cursor[0], at] : [at, at];
    draw();
    block.querySelector(".cursor")?.scrollIntoView({ block: "nearest" });
  }

  function draw() {
    const chosen = cursor && [words[Math.min(...cursor)][0], words[Math.max(...cursor)][1]];
    const edges = new Set([0, text.length, ...(chosen ?? []), ...spans.flatMap((each) => [each.start, each.end])]);
    const sorted = [...edges].sort((one, other) => one - other);
    const parts = sorted.slice(0, -1).map((start, index) => {
      const part = text.slice(start, sorted[index + 1]);
      const over = spans.filter((each) => each.start <= start && each.end > start);
      const classes = over.slice(-1).map((each) => `label-${labels.indexOf(each.label) % 6}`);
      if (chosen && chosen[0] <= start && chosen[1] > start) classes.push("cursor");
      return classes.length ? el(over.length ? "mark" : "span", { class: classes.join(" "), title: over.map((each) => each.label).join(", ") || null }, part) : document.createTextNode(part);
    });
    block.replaceChildren(...parts);
    const inOrder = [...spans].sort((one, other) => one.start - other.start);
    list.replaceChildren(...inOrder.map((each) => el("li", { class: `label-${labels.indexOf(each.label) % 6}` },
      el("b", { dir: "auto" }, each.label), el("q", { dir: "auto" }, short(text.slice(each.start, each.end))),
      button("Remove", () => remove(each), { class: "quiet", "aria-label": `Remove the mark ${each.label}` }))));
    save.firstChild.data = spans.length ? `Save ${spans.length} ${spans.length === 1 ? "mark" : "marks"}` : "Nothing to mark";
    hint.textContent = chosen || spans.length ? "" : "Select a passage, with the pointer or the arrow keys, and label it.";
  }

  function submit() {
    const value = spans.map(({ start, end, label }) => ({ start: toCodePoints(text, start), end: toCodePoints(text, end), label }));
    answer({ spans: value }, spans.length ? `${spans.length} ${spans.length === 1 ? "mark" : "marks"}` : "nothing to mark");
  }

  draw();
  return {
    question: "Mark what is wrong in this reply",
    content: [el("div", { class: "replies count-1" }, el("article", { class: "reply", "aria-label": "Reply" },
      el("h2", { class: "single" }, "Reply"), block, list))],
    answers: el("div", { class: "line" }, el("div", { class: "labels", role: "group", "aria-label": "Labels" }, ...labelButtons), hint, save),
    keys: {
      ArrowRight: () => move(1, false), ArrowLeft: () => move(-1, false),
      "Shift+ArrowRight": () => move(1, true), "Shift+ArrowLeft": () => move(-1, true),
      Backspace: () => spans.length && remove(spans[spans.length - 1]), Enter: submit,
      ...Object.fromEntries(labels.slice(0, 9).map((_, index) => [String(index + 1), () => mark(index)])),
    },
    help: [
      ["← →", "choose a word; with Shift more words"], [`1 … ${Math.min(labels.length, 9)}`, "label the chosen passage"],
      ["Backspace", "remove the last mark"], ["⏎", "save"],
    ],
  };
}

const short = (passage) => (passage.length > 60 ? `${passage.slice(0, 58)}…` : passage);
