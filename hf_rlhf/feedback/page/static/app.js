// The page: which task is shown, what is in hand, and what happens to an answer.
import { agreement } from "./agreement.js";
import { ask, newUuid, Outbox } from "./api.js";
import * as dialogs from "./dialogs.js";
import { button, el, fill } from "./dom.js";
import { correction } from "./forms/correction.js";
import { custom } from "./forms/custom.js";
import { pairwise } from "./forms/pairwise.js";
import { ranking } from "./forms/ranking.js";
import { rating } from "./forms/rating.js";
import { span } from "./forms/span.js";
import { settle, settled, useKeys } from "./keys.js";
import * as screens from "./screens.js";
import { Stopwatch } from "./stopwatch.js";
import { turns } from "./text.js";

const FORMS = { pairwise, ranking, rating, correction, span, custom };
const AGAIN = 30_000; // milliseconds between two questions whether the tasks in hand are still this annotator's
const at = (id) => document.getElementById(id);
const page = {
  session: null, annotator: null, outbox: null, queue: [], progress: { done: 0, open: 0, seconds: null }, finished: false,
  stops: false, before: null, comment: "", help: [], watch: new Stopwatch(), shown: null, undoing: false, undo: null,
  given: 0,
};

// --- tasks in hand ---

function take({ tasks, progress, finished, stops }) {
  const pending = page.outbox.events.map((event) => event.task);
  const known = new Set([...page.queue.map((task) => task.id), ...pending]);
  page.queue.push(...tasks.filter((task) => !known.has(task.id)));
  page.progress = { ...progress, done: progress.done + pending.length, open: Math.max(progress.open - pending.length, 0) };
  Object.assign(page, { finished, stops });
  showProgress();
  show();
}

async function refresh() {
  const holding = [...page.outbox.events.map((event) => event.task), ...page.queue.map((task) => task.id)];
  try {
    take(await ask("/api/tasks", { holding }));
  } catch (error) {
    if (!page.queue.length) showOnly(screens.failed(error.status ? error.message : "There is no connection to the server. Is it still running?"));
  }
}

// Asks for what this annotator holds, so that leases begin again. A task that is gone was answered by somebody else.
async function keepHold() {
  if (document.hidden || !page.outbox || page.outbox.events.length || page.undoing || location.hash) return;
  const given = page.given;
  const reply = await ask("/api/tasks", { holding: [] }).catch(() => null);
  if (!reply || page.given !== given || page.undoing) return; // an answer was given meanwhile, and the reply is old
  const held = new Set(reply.tasks.map((task) => task.id));
  const gone = page.queue.length > 0 && !held.has(page.queue[0].id);
  if (gone) say("Somebody else answered the task that was here. This is the next one.");
  page.queue = page.queue.filter((task) => held.has(task.id));
  take(reply);
}

// --- answers ---

function give(kind, value, words) {
  const task = page.queue[0];
  if (!task || page.shown !== task.id || !settled()) return;
  const event = {
    uuid: newUuid(), task: task.id, shown: task.shown, kind, value, comment: page.comment.trim() || null,
    seconds: page.watch.seconds(), annotator: page.annotator, at: Date.now(), words,
  };
  page.queue.shift();
  page.given += 1;
  page.before = page.undo = null;
  page.progress = { ...page.progress, done: page.progress.done + 1, open: Math.max(page.progress.open - 1, 0) };
  page.outbox.add(event);
  showProgress();
  show();
}

async function undo() {
  if (page.undoing || !settled()) return;
  page.undoing = true;
  try {
    await page.outbox.flush();
    page.undo ??= newUuid(); // kept until the reply came, so that a press after a lost one takes back nothing else
    const { task, taken } = await ask("/api/undo", { uuid: page.undo, annotator: page.annotator });
    page.undo = null;
    if (!task) say("There is nothing to take back.");
    else {
      page.queue = [task];
      page.before = taken;
      page.shown = null;
      say("Taken back. Answer again.");
      await refresh();
    }
  } catch (error) {
    say(error.status ? error.message : "There is no connection to the server. Press undo again when it is back.");
  } finally {
    page.undoing = false;
  }
}

function saved(event, reply) {
  say(`Saved: ${event.words}`);
  take(reply);
}

function refused(event, message) {
  say(`Not saved: ${message}`, true);
  page.queue = [];
  refresh();
}

function state(now, count, message) {
  const answers = count === 1 ? "1 answer waits" : `${count} answers wait`;
  if (now === "waiting") say(`No connection. ${answers} here, and will be sent when it is back.`, true);
  if (now === "closed") say(`The server was started again. Open the new address from the terminal; ${answers} here.`, true);
  if (now === "unsaved") say(`${message} ${answers} here, and will be sent again.`, true);
  document.body.dataset.state = now;
}

function say(words, wrong = false) {
  at("status").textContent = words;
  at("status").classList.toggle("wrong", wrong);
}

// --- what is shown ---

function show() {
  if (location.hash === "#agreement") return;
  const task = page.queue[0];
  if (page.finished && !page.outbox.events.length) {
    showOnly(screens.thanks(page), "thanks");
  } else if (task) {
    showTask(task);
  } else if (page.outbox.events.length) {
    showOnly(screens.loading(), "loading");
  } else if (page.progress.open) {
    showOnly(screens.waiting(page.progress), "waiting");
  } else {
    showOnly(screens.thanks({ ...page, undo }), "thanks");
  }
}

function showTask(task) {
  if (page.shown === task.id) return;
  page.shown = task.id;
  page.comment = page.before?.comment ?? "";
  const before = page.before?.kind === "answer" ? page.before.value : null;
  const form = FORMS[task.form.kind](task, { before, answer: (value, words) => give("answer", value, words) });
  page.help = form.help;
  const heading = el("h1", { tabindex: "-1", dir: "auto" }, task.form.question || form.question);
  const prompt = el("section", { class: "prompt", "aria-label": "Prompt" }, ...turns(task.prompt, { alone: "Prompt" }));
  fill(at("main"), heading, prompt, ...form.content);
  fill(at("answer"), form.answers);
  fill(at("beside"),
    button("Undo", undo, { key: "u", class: "quiet", disabled: page.progress.done === 0 }),
    button("Skip", skip, { key: "s", class: "quiet" }), button("Flag", flag, { key: "f", class: "quiet" }),
    button("Comment", comment, { key: "c", class: "quiet", id: "comment-button" }));
  markComment();
  if (page.progress.done === 0 && at("status").textContent === "") say(form.hint ?? "");
  at("bottom").hidden = false;
  useKeys(form.keys, { ...GENERAL, s: skip, f: flag, c: comment });
  scrollTo(0, 0);
  shortenPrompt(prompt);
  heading.focus({ preventScroll: true });
  page.watch.start();
  settle();
}

// A long conversation is shown from its end, so that the replies are in sight.
function shortenPrompt(prompt) {
  if (prompt.scrollHeight < innerHeight * 0.55) return;
  prompt.classList.add("scrolls");
  prompt.tabIndex = 0;
  const more = button("Show the whole prompt", () => {
    prompt.classList.remove("scrolls");
    more.remove();
  }, { key: "o", class: "show-all" });
  prompt.after(el("div", {}, more));
  prompt.scrollTop = prompt.querySelectorAll(".turn").length > 1 ? prompt.scrollHeight : 0;
}

function showOnly(screen, name = "notice") {
  if (page.shown === name && name !== "notice") return;
  page.shown = name;
  fill(at("main"), screen);
  fill(at("answer"));
  fill(at("beside"));
  at("bottom").hidden = name !== "loading";
  useKeys(name === "thanks" && !page.stops ? { u: undo, ...GENERAL } : GENERAL);
  settle();
  screen.querySelector("h1")?.focus({ preventScroll: true });
}

function showProgress() {
  const { done, open, seconds } = page.progress;
  const minutes = seconds ? Math.max(Math.round((seconds * open) / 60), 1) : null;
  const left = minutes && open ? ` · about ${minutes < 90 ? `${minutes} min` : `${Math.round(minutes / 60)} h`} left` : "";
  at("progress-words").textContent = `${done} of ${done + open} done${left}`;
  at("progress-bar").max = Math.max(done + open, 1);
  at("progress-bar").value = done;
}

const skip = () => give("skip", null, "skipped");
const flag = () => dialogs.flag((reason) => give("flag", { reason }, `flagged as ${reason}`));
const comment = () => dialogs.comment(page.comment, (text) => {
  page.comment = text;
  markComment();
});

function markComment() {
  const written = page.comment.trim() !== "";
  at("comment-button").firstChild.data = written ? "Comment ✓" : "Comment";
  at("comment-button").classList.toggle("written", written);
}

const showAll = () => document.querySelectorAll("button.show-all").forEach((each) => each.click());
const guidelines = () => page.session.guidelines && dialogs.guidelines(page.session.guidelines);
const GENERAL = {
  u: undo, o: showAll, g: guidelines, m: () => document.body.classList.toggle("fixed-width"), "?": () => dialogs.help(page.help),
};

// --- the beginning ---

function enter(annotator) {
  page.annotator = annotator;
  page.outbox = new Outbox(annotator, { holding: () => page.queue.map((task) => task.id), saved, refused, state });
  at("top").hidden = false;
  at("change-name").textContent = annotator;
  at("change-name").hidden = page.session.fixed;
  at("change-name").setAttribute("aria-label", `You answer as ${annotator}. Change the name`);
  at("open-guidelines").hidden = !page.session.guidelines;
  if (page.outbox.events.length) {
    show();
    page.outbox.flush();
  } else refresh();
  if (page.session.guidelines && firstTime(annotator)) guidelines();
}

// Guidelines open by themselves once for each annotator and each text.
function firstTime(annotator) {
  const key = `hf-rlhf-read:${annotator}:${page.session.guidelines.length}`;
  try {
    const read = localStorage.getItem(key) !== null;
    localStorage.setItem(key, "1");
    return !read;
  } catch {
    return false;
  }
}

function askForName() {
  at("top").hidden = at("bottom").hidden = true;
  Object.assign(page, { queue: [], shown: null, help: [] });
  useKeys({});
  const screen = screens.signIn(page.session, () => location.reload());
  fill(at("main"), screen.element);
  screen.focus();
}

function route() {
  if (!page.outbox) return;
  page.shown = null;
  at("open-agreement").setAttribute("aria-pressed", String(location.hash === "#agreement"));
  if (location.hash !== "#agreement") return page.queue.length ? show() : refresh();
  at("bottom").hidden = true;
  useKeys({ ...GENERAL, Escape: () => (location.hash = "") });
  agreement(at("main"), () => (location.hash = ""));
}

async function begin() {
  if (location.search) history.replaceState(null, "", location.pathname + location.hash); // the token is in a cookie now
  at("open-guidelines").addEventListener("click", guidelines);
  at("open-help").addEventListener("click", () => dialogs.help(page.help));
  at("open-agreement").addEventListener("click", () => (location.hash = location.hash ? "" : "#agreement"));
  at("change-name").addEventListener("click", askForName);
  addEventListener("hashchange", route);
  document.addEventListener("visibilitychange", keepHold);
  setInterval(keepHold, AGAIN);
  // What is scrolled into sight must not stop behind the answers at the bottom.
  new ResizeObserver(() => (document.documentElement.style.scrollPaddingBottom = `${at("bottom").offsetHeight + 12}px`)).observe(at("bottom"));
  try {
    page.session = await ask("/api/session");
    if (page.session.password || !page.session.annotator) askForName();
    else enter(page.session.annotator);
  } catch (error) {
    fill(at("main"), screens.failed(error.status ? error.message : "There is no connection to the server. Is it still running?"));
  }
}

begin();
