// Texts: plain, with their newlines, in full on request; and their differences.
import { button, el } from "./dom.js";

const SHOWN = 8000; // characters of a text before "show all"
const FENCE = /^```.*\n[^]*?^```[^\S\n]*\n?/gm;
const ROLES = { user: "User", assistant: "Assistant", system: "System", tool: "Tool" };

// Offsets of answers are in Unicode code points, those of JavaScript in UTF-16 units.
export function toCodePoints(text, unit) {
  let points = 0;
  for (let at = 0; at < unit; at += text.codePointAt(at) > 0xffff ? 2 : 1) points += 1;
  return points;
}

export function toUnits(text, points) {
  let at = 0;
  for (; points > 0 && at < text.length; points -= 1) at += text.codePointAt(at) > 0xffff ? 2 : 1;
  return at;
}

export const countCharacters = (text) => toCodePoints(text, text.length);

function pieces(text) {
  const found = [];
  let end = 0;
  for (const match of text.matchAll(FENCE)) {
    if (match.index > end) found.push(document.createTextNode(text.slice(end, match.index)));
    found.push(code(match[0]));
    end = match.index + match[0].length;
  }
  found.push(document.createTextNode(text.slice(end)));
  return found;
}

function code(block) {
  const [first, last] = [block.indexOf("\n") + 1, block.replace(/\n$/, "").lastIndexOf("\n") + 1];
  const fence = (part) => el("span", { class: "fence" }, part);
  return el("code", { dir: "ltr" }, fence(block.slice(0, first)), block.slice(first, last), fence(block.slice(last)));
}

export function textBlock(text) {
  if (text === "") return el("div", { class: "text empty" }, "(empty)");
  const block = el("div", { class: "text", dir: "auto" });
  if (text.length <= SHOWN * 1.25) {
    block.append(...pieces(text));
    return block;
  }
  const cut = /[\ud800-\udbff]/.test(text[SHOWN - 1]) ? SHOWN - 1 : SHOWN;
  block.append(...pieces(text.slice(0, cut)));
  const all = () => block.replaceChildren(...pieces(text));
  const more = button(`Show all ${countCharacters(text).toLocaleString("en")} characters`, () => {
    all();
    more.remove();
  }, { key: "o", class: "show-all" });
  return el("div", {}, block, more);
}

export function turns(messages, { alone = "" } = {}) {
  const one = messages.length === 1 && !alone; // one reply needs no name
  return messages.map(({ role, content }) => {
    const name = ROLES[role] ?? role ?? alone;
    return el(
      "div", { class: `turn ${role === "user" ? "from-user" : role === "system" ? "from-system" : "from-model"}` },
      name && !one ? el("p", { class: "role", dir: "auto" }, name) : null, textBlock(content),
    );
  });
}

// --- differences, word by word ---

const MOST_EDITS = 600;

export function differences(before, after) {
  const [a, b] = [words(before), words(after)];
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end += 1;
  const middle = shortestEdit(a.slice(start, a.length - end), b.slice(start, b.length - end));
  return merged([["same", a.slice(0, start).join("")], ...middle, ["same", a.slice(a.length - end).join("")]]);
}

const words = (text) => text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) ?? [];

// Myers 1986, "An O(ND) difference algorithm"; texts with more edits than MOST_EDITS are shown as one replacement.
function shortestEdit(a, b) {
  const far = new Map([[1, 0]]);
  const steps = [];
  for (let edits = 0; edits <= Math.min(a.length + b.length, MOST_EDITS); edits += 1) {
    steps.push(new Map(far));
    for (let k = -edits; k <= edits; k += 2) {
      const down = k === -edits || (k !== edits && (far.get(k - 1) ?? -1) < (far.get(k + 1) ?? -1));
      let x = down ? far.get(k + 1) ?? 0 : (far.get(k - 1) ?? 0) + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x += 1;
      far.set(k, x);
      if (x >= a.length && x - k >= b.length) return walkBack(a, b, steps, edits);
    }
  }
  return [["gone", a.join("")], ["new", b.join("")]];
}

function walkBack(a, b, steps, edits) {
  const found = [];
  let [x, y] = [a.length, b.length];
  for (let d = edits; d >= 0; d -= 1) {
    const far = steps[d];
    const k = x - y;
    const down = k === -d || (k !== d && (far.get(k - 1) ?? -1) < (far.get(k + 1) ?? -1));
    const from = down ? k + 1 : k - 1;
    const fromX = d === 0 ? 0 : far.get(from) ?? 0;
    const fromY = d === 0 ? 0 : fromX - from;
    while (x > fromX && y > fromY) {
      found.push(["same", a[x - 1]]);
      x -= 1;
      y -= 1;
    }
    if (d > 0) {
      found.push(down ? ["new", b[y - 1]] : ["gone", a[x - 1]]);
      [x, y] = [fromX, fromY];
    }
  }
  return found.reverse();
}

function merged(parts) {
  const found = [];
  for (const [kind, text] of parts) {
    if (text === "") continue;
    if (found.length && found[found.length - 1][0] === kind) found[found.length - 1][1] += text;
    else found.push([kind, text]);
  }
  return found;
}
