// Replies in an order, the best first; equal places are ties.
import { button, choices, el } from "../dom.js";
import { letterOf, replyCards, rows } from "./cards.js";
import { places } from "./places.js";

export function ranking(task, { answer, before }) {
  const count = task.completions.length;
  const ranks = before ? [...before.ranks] : Array(count).fill(null);
  const options = ranks.map((_, index) => ({ value: index + 1, label: String(index + 1), key: String(index + 1) }));
  const groups = ranks.map((rank, place) => choices(`Place of ${letterOf(place)}`, options, {
    chosen: rank, kind: "numbers", choose: (value) => set(place, Number(value), false),
  }));
  const cards = replyCards(task, (place) => groups[place].element);
  const row = rows([...cards.children]);
  const board = places(count, (place, rank) => set(place, rank, false));
  const summary = el("p", { class: "summary", "aria-live": "polite" });
  const save = button("Save the order", () => submit(), { key: "⏎", class: "save" });

  function set(place, rank, move = true) {
    ranks[place] = rank;
    groups[place].select(rank);
    row.go(place, false);
    const open = ranks.findIndex((each, index) => each === null && index > place);
    const any = open >= 0 ? open : ranks.indexOf(null);
    if (move && any >= 0) row.go(any);
    update();
  }

  function words() {
    const found = [...new Set(ranks)].sort((one, other) => one - other);
    return found.map((rank) => ranks.flatMap((each, place) => (each === rank ? [letterOf(place)] : [])).join(" = ")).join(" > ");
  }

  function update() {
    board.show(ranks);
    const left = ranks.filter((rank) => rank === null).length;
    save.disabled = left > 0;
    summary.textContent = left === count ? "Drag each letter to a place, or choose it under the reply. Equal places are ties."
      : left > 0 ? `${left} ${left === 1 ? "reply has" : "replies have"} no place yet` : words();
  }

  function submit() {
    if (!save.disabled) answer({ ranks }, words());
  }

  update();
  return {
    question: "Put the replies in order",
    content: [cards],
    answers: el("div", { class: "line" }, board.element, summary, save),
    keys: {
      ...row.keys, Enter: submit,
      ...Object.fromEntries(options.map(({ key, value }) => [key, () => set(row.at, value)])),
    },
    help: [[`1 … ${count}`, "the place of the marked reply; 1 is the best"], ["j k", "mark the next or the last reply"], ["⏎", "save"]],
  };
}
