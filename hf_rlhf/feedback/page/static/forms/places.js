// Letters of replies, dragged to their places with the mouse or a finger. The choices under the replies do the same by
// keys and single clicks, and are read aloud, so that screen readers get nothing twice.
import { el } from "../dom.js";
import { letterOf } from "./cards.js";

export function places(count, moved) {
  const letters = Array.from({ length: count }, (_, reply) => el("span", { class: "letter" }, letterOf(reply)));
  const box = (rank, name) => el("div", { class: rank ? "place" : "place tray" }, el("p", {}, name), el("div", { class: "place-letters" }));
  const name = (rank) => (rank === 1 ? "1 · best" : rank === count ? `${rank} · last` : String(rank));
  const boxes = Array.from({ length: count + 1 }, (_, rank) => box(rank, rank ? name(rank) : "No place yet"));
  letters.forEach((letter, reply) => draggable(letter, boxes, (rank) => moved(reply, rank || null)));
  const show = (ranks) => ranks.forEach((rank, reply) => {
    const to = boxes[rank ?? 0].lastChild;
    if (letters[reply].parentNode !== to) to.append(letters[reply]);
  });
  return { element: el("div", { class: "places", "aria-hidden": "true" }, ...boxes), show };
}

// A letter that is let go over a box is `dropped` there, with the number of the box; elsewhere it goes back.
function draggable(letter, boxes, dropped) {
  let from = null;
  const under = ({ clientX, clientY }) => {
    const found = document.elementsFromPoint(clientX, clientY);
    return boxes.findIndex((box) => found.includes(box));
  };
  const mark = (over) => boxes.forEach((box, index) => box.classList.toggle("over", index === over));
  const end = () => {
    from = null;
    mark(-1);
    letter.classList.remove("dragged");
    letter.style.transform = "";
  };
  letter.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault(); // no text is selected meanwhile
    letter.setPointerCapture(event.pointerId);
    from = [event.clientX, event.clientY];
    letter.classList.add("dragged");
  });
  letter.addEventListener("pointermove", (event) => {
    if (from === null) return;
    letter.style.transform = `translate(${event.clientX - from[0]}px, ${event.clientY - from[1]}px)`;
    mark(under(event));
  });
  letter.addEventListener("pointerup", (event) => {
    if (from === null) return;
    const over = under(event);
    end();
    if (over >= 0) dropped(over);
  });
  letter.addEventListener("pointercancel", end);
}
