// Replies as cards: side by side where there is room.
import { el, newId } from "../dom.js";
import { turns } from "../text.js";

export const letterOf = (place) => "ABCDEFGH"[place];

export function replyCards(task, footer = null) {
  const several = task.completions.length > 1;
  const cards = task.completions.map((messages, place) => {
    const id = newId("reply");
    return el("article", { class: "reply", "aria-labelledby": id },
      el("h2", { id, class: several ? "" : "single" }, several ? el("span", { class: "visually-hidden" }, "Reply ") : "Reply",
        several ? el("span", { class: "letter" }, letterOf(place)) : null),
      el("div", { class: "reply-text" }, ...turns(messages)), footer ? footer(place) : null);
  });
  return el("div", { class: `replies count-${Math.min(cards.length, 5)}` }, ...cards);
}

// Rows of which one is current: j and k move between them, and digits go to it.
export function rows(elements) {
  let at = 0;
  const mark = () => elements.forEach((element, index) => element.classList.toggle("current", index === at));
  const go = (to, scroll = true) => {
    at = Math.min(Math.max(to, 0), elements.length - 1);
    mark();
    if (scroll) elements[at].scrollIntoView({ block: "nearest" });
  };
  mark();
  return { go, get at() { return at; }, keys: { j: () => go(at + 1), k: () => go(at - 1) } };
}
