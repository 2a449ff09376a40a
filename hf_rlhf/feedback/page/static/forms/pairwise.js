// Which of two replies is better, and by how much. One key or click is the answer.
import { button, el, newId } from "../dom.js";
import { replyCards } from "./cards.js";

const KEYS_A = ["1", "2", "3"];
const KEYS_B = ["8", "9", "0"];
const WORDS = { 1: ["better"], 2: ["better", "slightly better"], 3: ["much better", "better", "slightly better"] };

function options(strengths) {
  const words = WORDS[strengths];
  const toward = (place) => words.map((word, index) => ({
    word, name: `${"AB"[place]} is ${word}`, value: { preferred: place, strength: strengths - index },
    key: place === 0 ? KEYS_A[index] : KEYS_B[KEYS_B.length - 1 - index],
  }));
  return {
    a: toward(0),
    middle: [
      { word: "Tie", name: "Tie", value: { preferred: "tie" }, key: "=" },
      { word: "Both bad", name: "Both bad", value: { preferred: "both_bad" }, key: "-" },
    ],
    b: toward(1).reverse(),
  };
}

const same = (one, other) => one.preferred === other?.preferred && one.strength === other?.strength;

export function pairwise(task, { answer, before }) {
  const { a, middle, b } = options(task.form.strengths);
  const scale = [...a, middle[0], ...b];
  const all = [...a, ...middle, ...b];
  const give = (option) => answer(option.value, option.name);
  const buttons = new Map(all.map((option) => [option, button(option.word, () => give(option), {
    key: option.key, before: option.name.slice(0, -option.word.length), class: same(option.value, before) ? "before" : "",
  })]));
  let at = a.length; // the arrow keys begin at the tie
  const move = (by) => {
    buttons.get(scale[at]).classList.remove("at");
    at = Math.min(Math.max(at + by, 0), scale.length - 1);
    buttons.get(scale[at]).classList.add("at");
    buttons.get(scale[at]).focus();
  };
  const group = (title, letter, items) => {
    const id = newId("group");
    return el("div", { class: `group toward-${letter}`, role: "group", "aria-labelledby": id },
      el("p", { id }, ...title), el("div", { class: "group-buttons" }, ...items.map((option) => buttons.get(option))));
  };
  const title = (letter) => [el("span", {}, "Reply"), el("span", { class: "letter" }, letter), el("span", {}, "is")];
  return {
    question: "Which reply is better?",
    hint: "One click or key is the answer. It is saved at once; Undo takes it back.",
    content: [replyCards(task)],
    answers: el("div", { class: "scale" },
      group(title("A"), "a", a), group([el("span", {}, "Neither is better")], "none", middle), group(title("B"), "b", b)),
    keys: {
      ...Object.fromEntries(all.map((option) => [option.key, () => give(option)])),
      ArrowLeft: () => move(-1),
      ArrowRight: () => move(1),
    },
    help: [
      [a.map(({ key }) => key).join(" "), `A is ${WORDS[task.form.strengths].join(", ")}`],
      [b.map(({ key }) => key).join(" "), `B is ${[...WORDS[task.form.strengths]].reverse().join(", ")}`],
      ["=", "tie: both are equally good"],
      ["-", "both are bad"],
      ["← →  ⏎", "move over the buttons, and answer"],
    ],
  };
}
