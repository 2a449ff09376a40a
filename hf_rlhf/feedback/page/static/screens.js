// What the page shows when there is no task: the question for a name, the end, waiting.
import { ask } from "./api.js";
import { button, el, newId } from "./dom.js";

export function signIn({ fixed, password, annotator }, entered) {
  const field = (label, attributes) => {
    const id = newId("field");
    const input = el("input", { id, required: true, autocomplete: "off", maxlength: "80", ...attributes });
    return { input, element: el("p", {}, el("label", { for: id }, label), input) };
  };
  const name = fixed ? null : field("Your name", { type: "text", name: "name", value: annotator ?? "", autocomplete: "nickname", spellcheck: "false", dir: "auto" });
  const secret = password ? field("Password", { type: "password", name: "password", maxlength: "1000" }) : null;
  const wrong = el("p", { class: "wrong", role: "alert" });
  const form = el("form", { class: "notice", on: { submit } },
    el("h1", { tabindex: "-1" }, "Welcome"),
    el("p", {}, "You will read replies of language models and say what you think of them. Each answer is saved at once, and you can take it back."),
    name?.element, secret?.element, wrong, el("button", { type: "submit", class: "save" }, "Start"),
    name ? el("p", { class: "hint" }, "Your answers are kept under this name. Use the same one next time.") : null);

  async function submit(event) {
    event.preventDefault();
    try {
      entered((await ask("/api/session", { name: name?.input.value ?? null, password: secret?.input.value ?? null })).annotator);
    } catch (error) {
      wrong.textContent = error.status ? error.message : "There is no connection to the server. Try again.";
    }
  }
  return { element: form, focus: () => (name ?? secret ?? { input: form.querySelector("h1") }).input.focus() };
}

export function thanks({ progress, stops, undo }) {
  const { done } = progress;
  return el("section", { class: "notice" },
    el("h1", { tabindex: "-1" }, "Thank you!"),
    el("p", {}, `You have answered ${done === 1 ? "one task" : `${done} tasks`}. All is saved.`),
    el("p", {}, stops ? "The program in the terminal goes on by itself. You can close this page." : "Nothing is left to ask you. You can close this page, and end the program in the terminal with Ctrl+C: it names the next step."),
    undo && !stops ? button("Take back the last answer", undo, { key: "u" }) : null);
}

export function waiting(progress) {
  return el("section", { class: "notice" },
    el("h1", { tabindex: "-1" }, "Nothing to answer right now"),
    el("p", {}, `Others have the last ${progress.open === 1 ? "task in hand. If it" : `${progress.open} tasks in hand. If one`} is not answered within ten minutes, it appears here by itself.`));
}

export function failed(message) {
  return el("section", { class: "notice" }, el("h1", { tabindex: "-1" }, "This page cannot be opened"), el("p", {}, message));
}

export function loading() {
  return el("section", { class: "notice", "aria-busy": "true" }, el("h1", { tabindex: "-1", class: "faint" }, "One moment …"));
}
