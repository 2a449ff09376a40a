// Elements. Text reaches the page only as text nodes, so what a model wrote is never markup.

const present = (child) => child !== null && child !== undefined && child !== "";

export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, run] of Object.entries(value)) element.addEventListener(event, run);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter(present));
  return element;
}

// `before` is read aloud before the label, and not shown.
export function button(label, run, { key = "", before = "", ...attributes } = {}) {
  // The second click of a double click is no click of its own.
  const click = (event) => event.detail > 1 || run(event);
  const hint = key ? el("kbd", { "aria-hidden": "true" }, key) : null;
  const keys = key ? { "aria-keyshortcuts": key === "⏎" ? "Enter" : key } : {};
  return el("button", { type: "button", ...keys, ...attributes, on: { click } }, before && el("span", { class: "visually-hidden" }, before), label, hint);
}

export function fill(parent, ...children) {
  parent.replaceChildren(...children.filter(present));
}

let made = 0;
export const newId = (name) => `${name}-${(made += 1)}`;

// One group of radio buttons that looks like a row of buttons. `choose` gets the value.
export function choices(legend, options, { chosen = null, choose, kind = "row", hint = null, of = "" }) {
  const name = newId("choice");
  const inputs = options.map(({ value }) =>
    el("input", {
      type: "radio", name, value, id: newId("option"), checked: value === chosen, on: { change: () => choose(value) },
    }),
  );
  const labels = options.map(({ label, key }, index) =>
    el("label", { for: inputs[index].id }, el("span", { dir: "auto" }, label),
      key && key !== label ? el("kbd", { "aria-hidden": "true" }, key) : null));
  const set = el(
    "fieldset", { class: `choices ${kind}` }, el("legend", { dir: "auto" }, legend, of && el("span", { class: "visually-hidden" }, of)),
    el("div", { class: "options" }, ...inputs.flatMap((input, index) => [input, labels[index]])),
    hint && el("p", { class: "hint" }, hint),
  );
  const select = (value) => inputs.forEach((input, index) => (input.checked = options[index].value === value));
  return { element: set, select, inputs };
}
