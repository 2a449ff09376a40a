// Numbers about the annotators, without a word on who wrote the replies.
import { ask } from "./api.js";
import { button, el, fill } from "./dom.js";

export async function agreement(main, back) {
  const head = [el("h1", { tabindex: "-1" }, "Agreement"), button("Back to the tasks", back, { key: "Esc" })];
  fill(main, el("section", { class: "report" }, ...head));
  main.querySelector("h1").focus();
  try {
    const { report } = await ask("/api/agreement");
    fill(main, el("section", { class: "report" }, ...head, ...shown(report)));
  } catch (error) {
    fill(main, el("section", { class: "report" }, ...head, el("p", { class: "wrong" }, error.message)));
  }
}

function shown(value, level = 2) {
  if (Array.isArray(value)) return value.flatMap((each) => shown(each, level));
  return Object.entries(value).flatMap(([name, each]) => (each !== null && typeof each === "object"
    ? [el(`h${level}`, {}, name), ...shown(each, level + 1)] : [el("p", {}, `${name}: ${each}`)]));
}
