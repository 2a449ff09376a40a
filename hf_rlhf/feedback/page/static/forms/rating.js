// Each reply on one or several criteria. With one reply and one criterion, one key is the answer.
import { button, choices, el, newId } from "../dom.js";
import { letterOf, replyCards, rows } from "./cards.js";

const keyOf = (value) => (value === 10 ? "0" : String(value));
const meaning = (points) => `1 is bad, ${points} is very good`;

export function rating(task, context) {
  const { criteria, points } = task.form;
  const options = Array.from({ length: points }, (_, index) => ({
    value: index + 1, label: String(index + 1), key: keyOf(index + 1),
  }));
  return criteria.length * task.completions.length === 1 ? single(task, options, context) : several(task, options, context);
}

function single(task, options, { answer, before }) {
  const [name] = task.form.criteria;
  const give = (value) => answer({ ratings: { [name]: [value] } }, `${value} of ${options.length}`);
  const id = newId("group");
  const buttons = options.map(({ value, label, key }) => button(label, () => give(value), {
    "aria-keyshortcuts": key, class: before?.ratings[name][0] === value ? "before" : "",
  }));
  return {
    question: "How good is this reply?",
    hint: "One click or key is the answer. It is saved at once; Undo takes it back.",
    content: [replyCards(task)],
    answers: el("div", { class: "points", role: "group", "aria-labelledby": id },
      el("p", { id, dir: "auto" }, `${capital(name)}: ${meaning(options.length)}`), el("div", { class: "group-buttons" }, ...buttons)),
    keys: Object.fromEntries(options.map(({ key, value }) => [key, () => give(value)])),
    help: [[`1 … ${keyOf(options.length)}`, "the rating, which is saved at once"]],
  };
}

function several(task, options, { answer, before }) {
  const { criteria } = task.form;
  const count = task.completions.length;
  const ratings = Object.fromEntries(criteria.map((name) => [name, before ? [...before.ratings[name]] : Array(count).fill(null)]));
  const cells = Array.from({ length: count }, (_, place) => criteria.map((name) => ({ place, name }))).flat();
  const groups = cells.map(({ place, name }, index) => choices(capital(name), options, {
    chosen: ratings[name][place], kind: "numbers", choose: (value) => set(index, Number(value), false),
    hint: index % criteria.length === 0 ? meaning(options.length) : null, of: count > 1 ? ` of ${letterOf(place)}` : "",
  }));
  const ofPlace = (place) => el("div", { class: "criteria" }, ...groups.filter((_, index) => cells[index].place === place).map(({ element }) => element));
  const row = rows(groups.map(({ element }) => element));
  const summary = el("p", { class: "summary", "aria-live": "polite" });
  const save = button("Save the ratings", () => submit(), { key: "⏎", class: "save" });
  const open = (from = 0) => cells.findIndex(({ place, name }, index) => index >= from && ratings[name][place] === null);

  function set(index, value, move = true) {
    const { place, name } = cells[index];
    ratings[name][place] = value;
    groups[index].select(value);
    row.go(index, false);
    const next = open(index) >= 0 ? open(index) : open();
    if (move && next >= 0) row.go(next);
    update();
  }

  function update() {
    const left = cells.filter(({ place, name }) => ratings[name][place] === null).length;
    save.disabled = left > 0;
    summary.textContent = left === 0 ? "All are rated" : `${left} of ${cells.length} left`;
  }

  function submit() {
    if (!save.disabled) answer({ ratings }, "the ratings");
  }

  update();
  return {
    question: count > 1 ? "How good is each reply?" : "How good is this reply?",
    content: [replyCards(task, ofPlace)],
    answers: el("div", { class: "line" }, summary, save),
    keys: {
      ...row.keys, Enter: submit, ...Object.fromEntries(options.map(({ key, value }) => [key, () => set(row.at, value)])),
    },
    help: [
      [`1 … ${keyOf(options.length)}`, "the rating of the marked line"], ["j k", "mark the next or the last line"], ["⏎", "save"],
    ],
  };
}

const capital = (name) => name.slice(0, 1).toUpperCase() + name.slice(1);
