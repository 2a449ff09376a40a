"""Style, template and script of the page of trajectories; `page.py` says what stands in it."""

STYLE = """
:root { --above: #0072b2; --below: #d55e00; --most: 62%; }
@media (prefers-color-scheme: dark) { :root { --above: #3d9bd6; --below: #d9722e; --most: 66%; } }
main { padding-bottom: 220px; }
.controls { position: sticky; top: 0; z-index: 2; padding: 12px 18px; margin-bottom: 12px; overflow: visible; }
.choices { display: none; border: 0; margin: 0 0 10px; padding: 0; flex-wrap: wrap; gap: 6px; }
.js .choices { display: flex; }
.choices legend { float: left; margin: 4px 8px 0 0; font-size: 14px; color: var(--muted); }
.choices label { position: relative; }
.choices input { position: absolute; opacity: 0; inset: 0; margin: 0; cursor: pointer; }
.choices span { display: block; padding: 4px 12px; border: 1px solid var(--line); border-radius: 99px; font-size: 14.5px; }
.choices input:checked + span { background: var(--ink); border-color: var(--ink); color: var(--card); font-weight: 600; }
.choices input:focus-visible + span { outline: 3px solid var(--accent); outline-offset: 2px; }
.scale { display: flex; align-items: center; gap: 10px; font-size: 14px; font-variant-numeric: tabular-nums; }
.scale i { flex: 0 1 260px; height: 14px; border-radius: 4px; border: 1px solid var(--line); background: linear-gradient(90deg, transparent, color-mix(in srgb, var(--above) var(--most), transparent)); }
.scale.diverging i { background: linear-gradient(90deg, color-mix(in srgb, var(--below) var(--most), transparent), transparent, color-mix(in srgb, var(--above) var(--most), transparent)); }
.meaning, .how { margin: 6px 0 0; color: var(--muted); font-size: 14px; }
.hint { display: none; margin: 0 0 12px; color: var(--muted); font-size: 14px; }
.js .hint { display: block; }
.trajectory { margin-bottom: 20px; padding: 16px 18px 18px; }
.trajectory h2 { margin: 0; font-size: 17px; }
.facts { margin: 2px 0 10px; color: var(--muted); font-size: 14.5px; overflow-wrap: anywhere; }
.asked, .turn { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.asked { margin: 0 0 12px; padding: 10px 14px; max-height: 9.5em; overflow-y: auto; border-left: 3px solid var(--line); background: var(--page); border-radius: 0 8px 8px 0; font-size: 14.5px; line-height: 1.5; color: var(--muted); }
.tokens { border-radius: 6px; }
.tokens:focus-visible { outline: 3px solid var(--accent); outline-offset: 4px; }
.turn { line-height: 1.85; overflow: clip; overflow-clip-margin: 4px; }
.turn + .turn { margin-top: 10px; }
.turn .who { display: block; font-size: 13px; color: var(--muted); font-weight: 600; line-height: 1.5; }
.turn.environment { padding: 6px 14px; border-left: 3px dashed var(--line); }
.token { padding: 2px 0; box-shadow: -1px 0 0 color-mix(in srgb, var(--line) 70%, transparent); background: color-mix(in srgb, var(--tone, var(--above)) calc(var(--x, 0) * var(--most)), transparent); box-decoration-break: clone; -webkit-box-decoration-break: clone; }
.js .token { cursor: pointer; }
.token.minus { --tone: var(--below); text-decoration: underline dotted 1.5px color-mix(in srgb, currentColor 55%, transparent); text-underline-offset: 4px; }
.token.out { color: var(--muted); }
.token.part { font-size: 75%; color: var(--muted); }
.token:hover { box-shadow: 0 0 0 1.5px var(--muted); }
.token[aria-selected="true"] { box-shadow: 0 0 0 2.5px var(--ink); border-radius: 2px; }
.panel { position: fixed; z-index: 3; left: 50%; bottom: 14px; transform: translateX(-50%); width: min(1032px, calc(100% - 28px)); padding: 12px 18px 14px; box-shadow: 0 6px 28px rgb(0 0 0 / .22); max-height: 46vh; overflow-y: auto; }
.panel[hidden] { display: none; }
.panel p { margin: 0 0 8px; font-size: 14.5px; color: var(--muted); padding-right: 40px; overflow-wrap: anywhere; }
.panel code { font: 600 16px/1.4 ui-monospace, Consolas, "DejaVu Sans Mono", monospace; color: var(--ink); background: var(--page); padding: 1px 6px; border-radius: 5px; white-space: pre-wrap; unicode-bidi: isolate; }
.panel dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(142px, 1fr)); gap: 6px 16px; margin: 0; }
.panel dt { font-size: 13px; color: var(--muted); }
.panel dd { margin: 0; font-size: 17px; font-variant-numeric: tabular-nums; }
.panel .now dt { color: var(--ink); font-weight: 600; } .panel .now dd { font-weight: 700; }
.panel button { position: absolute; top: 8px; right: 10px; width: 34px; height: 34px; border: 0; border-radius: 8px; background: none; color: var(--ink); font-size: 20px; cursor: pointer; }
.panel button:hover { background: var(--page); }
.panel button:focus-visible { outline: 3px solid var(--accent); }
@media (max-width: 640px) {
  .controls, .trajectory { padding: 12px; }
  .choices legend { float: none; width: 100%; margin: 0; }
  .choices span { padding: 4px 10px; font-size: 14px; }
  .controls .meaning { display: none; }
  .panel { padding: 10px 12px; } .panel dl { grid-template-columns: repeat(3, 1fr); gap: 4px 10px; } .panel dd { font-size: 15.5px; } .panel dt { font-size: 12.5px; }
}
@media print { .controls { position: static; } .panel { display: none; } .token { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
@media (forced-colors: active) { .token { forced-color-adjust: none; } }
"""

TEMPLATE = """\
<h1>{{ title }}</h1>
<p class="headline">{{ headline }}</p>

<section class="card controls">
<fieldset class="choices"><legend>Color by</legend>
{% for each in quantities %}
<label><input type="radio" name="quantity" value="{{ each.name }}"{% if each.name == chosen.name %} checked{% endif %}><span>{{ each.title }}</span></label>
{% endfor %}
</fieldset>
<div class="scale{% if scale.diverging %} diverging{% endif %}" id="scale"><b id="low">{{ "%.3g" | format(scale.low) }}</b><i></i><b id="high">{{ "%.3g" | format(scale.high) }}</b></div>
<p class="meaning"><b id="title">{{ chosen.title }}</b>: <span id="meaning">{{ chosen.meaning }}</span></p>
</section>
<p class="hint">Point at a token, tap it, or press Tab and the arrow keys: its numbers are shown below.</p>

{% for row in rows %}
<article class="card trajectory">
<h2>Row {{ row.number }}</h2>
<p class="facts">{{ row.facts | join(" · ") }}</p>
<div class="asked" tabindex="0" role="region" aria-label="Prompt of row {{ row.number }}">{{ row.prompt }}</div>
<div class="tokens" aria-label="Tokens of row {{ row.number }}">
{% for turn in row.turns %}
<div class="turn {{ turn.role }}">{% if turn.several %}<span class="who">{{ turn.role }}</span>{% endif %}{% for token in turn.tokens %}<span class="token{% if token.strength is none %} out{% elif token.strength < 0 %} minus{% endif %}{% if token.part %} part{% endif %}"{% if token.strength %} style="--x:{{ "%.2f" | format(token.strength | abs) }}"{% endif %}>{{ token.text }}</span>{% endfor %}</div>
{% endfor %}
{% if not row.turns or not row.turns[0].tokens %}<p class="empty">(no tokens)</p>{% endif %}
</div>
</article>
{% endfor %}

<p class="how">Numbers beyond the ends of the scale have the color of the end. The scale is that of all rows on this page. A dotted line is below a token whose number is negative. Gray tokens do not count in the loss. ▯ is a token with a part of the bytes of the next character. {{ others }}</p>

<aside class="card panel" id="panel" hidden><button type="button" id="close" aria-label="Close">×</button><p><code id="text"></code> <span id="where"></span></p><dl id="values"></dl></aside>
<script type="application/json" id="data">{{ numbers | safe }}</script>
"""

SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const lists = [...document.querySelectorAll(".tokens")];
const rows = lists.map((list) => [...list.querySelectorAll(".token")]);
const words = (number) => number === null || number === undefined ? "\\u2013" : String(number).replace("-", "\\u2212");
let quantity = document.querySelector("input[name=quantity]:checked").value;
let selected = null;

document.documentElement.classList.add("js");
const cells = data.names.map((name) => {
  const cell = document.createElement("div");
  cell.append(document.createElement("dt"), document.createElement("dd"));
  cell.firstChild.textContent = name;
  at("values").append(cell);
  return cell;
});

function strength(number, scale) {
  if (number === null) return null;
  const width = scale.diverging ? scale.high : scale.high - scale.low;
  if (!width) return 0;
  const place = (scale.diverging ? number : number - scale.low) / width;
  return Math.max(scale.diverging ? -1 : 0, Math.min(1, place));
}

function paint() {
  const scale = data.quantities[quantity];
  rows.forEach((tokens, r) => {
    const numbers = data.rows[r].numbers[scale.place];
    tokens.forEach((token, t) => {
      const x = strength(numbers[t], scale);
      token.style.setProperty("--x", Math.abs(x || 0).toFixed(2));
      token.classList.toggle("minus", x !== null && x < 0);
    });
  });
  at("scale").classList.toggle("diverging", scale.diverging);
  at("low").textContent = words(Number(scale.low.toPrecision(3)));
  at("high").textContent = words(Number(scale.high.toPrecision(3)));
  at("title").textContent = data.names[scale.place];
  at("meaning").textContent = scale.meaning;
  cells.forEach((cell, place) => cell.classList.toggle("now", place === scale.place));
}

function show(r, t) {
  const row = data.rows[r], token = rows[r][t];
  at("text").textContent = token.textContent;
  const whose = token.closest(".turn").classList.contains("environment") ? ", by the environment" : "";
  const counted = token.classList.contains("out") ? ", not in the loss" : "";
  at("where").textContent = "token " + t + " of row " + lists[r].getAttribute("aria-label").split(" ").pop() + ", id " + row.ids[t] + whose + counted;
  cells.forEach((cell, place) => { cell.lastChild.textContent = words(row.numbers[place][t]); });
  at("panel").hidden = false;
}

function name(r, t) {
  const numbers = data.names.map((each, place) => each + " " + words(data.rows[r].numbers[place][t]));
  return rows[r][t].textContent + ", " + numbers.join(", ");
}

function select(r, t) {
  if (selected) {
    const before = rows[selected[0]][selected[1]];
    before.setAttribute("aria-selected", "false");
    before.removeAttribute("id");
    before.removeAttribute("aria-label");
    lists[selected[0]].removeAttribute("aria-activedescendant");
  }
  selected = r === null ? null : [r, t];
  if (!selected) { at("panel").hidden = true; return; }
  const token = rows[r][t];
  token.setAttribute("aria-selected", "true");
  token.setAttribute("aria-label", name(r, t));
  token.id = "selected";
  lists[r].setAttribute("aria-activedescendant", "selected");
  show(r, t);
}

function reveal(r, t) {  // not under a mouse, which would then point at another token
  const token = rows[r][t];
  const box = token.getBoundingClientRect(), bottom = at("panel").getBoundingClientRect().top;
  const top = document.querySelector(".controls").getBoundingClientRect().bottom;
  if (box.bottom > bottom - 8 || box.top < top + 8) window.scrollBy(0, box.top - (top + bottom) / 2);
}

lists.forEach((list, r) => {
  if (!rows[r].length) return;
  list.tabIndex = 0;
  list.setAttribute("role", "listbox");
  list.querySelectorAll(".turn").forEach((turn) => turn.setAttribute("role", "group"));
  rows[r].forEach((token, t) => { token.setAttribute("role", "option"); token.dataset.t = t; });
  const place = (event) => { const token = event.target.closest(".token"); return token ? Number(token.dataset.t) : null; };
  list.addEventListener("pointerover", (event) => {
    const t = place(event);
    if (event.pointerType === "mouse" && t !== null) show(r, t);
  });
  list.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") selected ? show(...selected) : (at("panel").hidden = true);
  });
  list.addEventListener("click", (event) => {
    const t = place(event);
    if (t === null) return;
    select(r, t);
    if (event.pointerType === "touch" || event.pointerType === "pen") reveal(r, t);
  });
  list.addEventListener("focus", () => {
    if (list.matches(":focus-visible") && !(selected && selected[0] === r)) { select(r, 0); reveal(r, 0); }
  });
  list.addEventListener("keydown", (event) => {
    const t = selected && selected[0] === r ? selected[1] : 0, last = rows[r].length - 1;
    const to = {ArrowRight: t + 1, ArrowLeft: t - 1, ArrowDown: t + 10, ArrowUp: t - 10, Home: 0, End: last}[event.key];
    if (event.key === "Escape") select(null);
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(last, to));
    select(r, next);
    reveal(r, next);
  });
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") select(null); });
at("close").addEventListener("click", () => select(null));
document.querySelectorAll("input[name=quantity]").forEach((input) => input.addEventListener("change", () => {
  quantity = input.value;
  paint();
}));
paint();
"""
