// Fields that whoever runs the page has written: choices, scales, texts and checkboxes.
import { button, choices, el, newId } from "../dom.js";
import { replyCards, rows } from "./cards.js";

export function custom(task, { answer, before }) {
  const values = { ...(before?.fields ?? {}) };
  const fields = task.form.fields.map((field) => ({ ...field, ...MAKE[field.type](field, values, () => update()) }));
  const row = rows(fields.map(({ element }) => element));
  const save = button("Save", () => submit(), { key: "⏎", class: "save" });
  const summary = el("p", { class: "summary", "aria-live": "polite" });

  const missing = () => fields.filter(({ name, type, required }) => required && type !== "checkbox" && !filled(values[name]));

  function update() {
    save.disabled = missing().length > 0;
    summary.textContent = questions(missing().length);
  }

  function submit() {
    update();
    if (save.disabled) return;
    answer({ fields: Object.fromEntries(Object.entries(values).filter(([, value]) => filled(value))) }, "the answers");
  }

  function press(digit) {
    const at = row.at;
    if (fields[at].press?.(digit) === false) return;
    if (fields[at].press && at + 1 < fields.length) row.go(at + 1);
    update();
  }

  update();
  return {
    question: "What do you think of this reply?",
    content: [replyCards(task), el("div", { class: "fields" }, ...fields.map(({ element }) => element))],
    answers: el("div", { class: "line" }, summary, save),
    keys: {
      ...row.keys, Enter: submit, e: () => fields[row.at].element.querySelector("textarea")?.focus(),
      ...Object.fromEntries(Array.from({ length: 10 }, (_, digit) => [String(digit), () => press(digit)])),
    },
    help: [["j k", "mark the next or the last question"], ["1 … 9", "choose in the marked question"], ["e", "write in it"], ["⏎", "save; in a text Ctrl ⏎"]],
  };
}

const questions = (left) => (left === 0 ? "" : left === 1 ? "1 question left" : `${left} questions left`);
const filled = (value) => value !== undefined && value !== null && !(typeof value === "string" && value.trim() === "");
const legend = ({ label, required }) => (required ? label : `${label} (optional)`);

const pick = (options, name, values, set) => (digit) => {
  const option = options.find(({ key }) => key === String(digit));
  if (!option) return false;
  set.select(option.value);
  values[name] = option.value;
  return true;
};

const MAKE = {
  choice(field, values, changed) {
    const options = field.options.map((value, index) => ({ value, label: value, key: index < 9 ? String(index + 1) : "" }));
    const set = choices(legend(field), options, {
      chosen: values[field.name] ?? null, choose: (value) => ((values[field.name] = value), changed()),
    });
    return { element: set.element, press: pick(options, field.name, values, set) };
  },
  scale(field, values, changed) {
    const options = Array.from({ length: field.high - field.low + 1 }, (_, index) => {
      const value = field.low + index;
      return { value, label: String(value), key: value === 10 && field.low > 0 ? "0" : value >= 0 && value < 10 ? String(value) : "" };
    });
    const set = choices(legend(field), options, {
      chosen: values[field.name] ?? null, kind: "numbers", choose: (value) => ((values[field.name] = Number(value)), changed()),
    });
    return { element: set.element, press: pick(options, field.name, values, set) };
  },
  text(field, values, changed) {
    const id = newId("field");
    const area = el("textarea", { id, rows: "2", dir: "auto", maxlength: "100000", on: { input: () => ((values[field.name] = area.value), changed()) } });
    area.value = values[field.name] ?? "";
    return { element: el("div", { class: "choices" }, el("label", { for: id, class: "legend", dir: "auto" }, legend(field)), area) };
  },
  checkbox(field, values, changed) {
    const id = newId("field");
    values[field.name] ??= false;
    const box = el("input", { type: "checkbox", id, checked: values[field.name], on: { change: () => ((values[field.name] = box.checked), changed()) } });
    const press = (digit) => (digit === 1 ? ((box.checked = !box.checked), (values[field.name] = box.checked), true) : false);
    return { element: el("div", { class: "choices check" }, box, el("label", { for: id, dir: "auto" }, field.label), el("kbd", { "aria-hidden": "true" }, "1")), press };
  },
};
