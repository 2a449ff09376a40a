// How far annotators agree, and the checks of each. Nothing here says who wrote the replies.
import { ask } from "./api.js";
import { button, el, fill } from "./dom.js";

const percent = (share) => (share === null || share === undefined ? "–" : `${Math.round(share * 100)} %`);
const number = (value) => (value === null || value === undefined ? "–" : value.toFixed(2));
const between = ({ low, high }, write) => (low === null || low === undefined ? "" : ` (${write(low)} to ${write(high)})`);
const estimate = (found, write) => (found ? write(found.value) + between(found, write) : "–");

export async function agreement(main, back) {
  const head = el("div", { class: "report-head" }, el("h1", { tabindex: "-1" }, "Agreement"), button("Back to the tasks", back, { key: "Esc" }));
  const section = el("section", { class: "report" }, head);
  fill(main, section);
  head.querySelector("h1").focus();
  try {
    const { report } = await ask("/api/agreement");
    fill(section, head, ...shown(report));
  } catch (error) {
    fill(section, head, el("p", { class: "wrong" }, error.status ? error.message : "There is no connection to the server."));
  }
}

function shown(report) {
  const compared = report.agreement.filter(({ units }) => units > 0);
  return [
    el("p", {}, `${report.answers} answers to ${report.tasks} tasks by ${report.annotators.length} ${report.annotators.length === 1 ? "annotator" : "annotators"}.`),
    el("h2", {}, "Between annotators"),
    compared.length ? table(["Form", "Judged", "Compared", "Same answer", "Krippendorff's α", "Kendall's W"], compared.map(between_row))
      : el("p", { class: "hint" }, "Nothing to compare yet: no task was answered by two annotators."),
    compared.length ? el("p", { class: "hint" }, "In brackets: 95 % intervals. α is 1 where all agree, and 0 where they agree as by chance. People who judge language models often reach 0.3 to 0.6.") : null,
    el("h2", {}, "Each annotator"),
    table(["Name", "Answers", "Skipped", "Flagged", "First reply preferred", "Gold questions right", "Seconds"], report.annotators.map(annotator_row)),
    el("p", { class: "hint" }, "The first reply should be preferred about half of the time, as the order is random. ⚠ marks a share that chance does not explain."),
  ];
}

function between_row({ form, what, units, percent: same, alpha, kendalls_w: kendall }) {
  const level = alpha.ordinal ? "ordinal" : "nominal";
  return [form, what, String(units), estimate(same, percent), `${estimate(alpha[level], number)}, ${level}`, estimate(kendall, number)];
}

function annotator_row({ name, answers, skips, flags, position, gold, pace }) {
  return [
    name, String(answers), String(skips), String(flags),
    position.n ? `${percent(position.share)}${between(position, percent)}${position.flagged ? " ⚠" : ""}` : "–",
    gold.n ? `${gold.right} of ${gold.n}` : "–", pace.median_seconds === null ? "–" : pace.median_seconds.toFixed(1),
  ];
}

function table(names, rows) {
  const cells = (tag, values) => values.map((value, index) => (index === 0 && tag === "td" ? el("th", { scope: "row", dir: "auto" }, value) : el(tag, tag === "th" ? { scope: "col" } : {}, value)));
  return el("div", { class: "table", tabindex: "0", role: "group", "aria-label": "Table" }, el("table", {},
    el("thead", {}, el("tr", {}, ...cells("th", names))), el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells("td", row))))));
}
