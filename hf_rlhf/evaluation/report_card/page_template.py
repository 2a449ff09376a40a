"""Style and template of the report card's page; `page.py` says what stands in it."""

STYLE = """
:root { --good: #1a7f4b; --care: #9a6700; --refused: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --good: #4cc38a; --care: #e0b341; --refused: #ff8078; }
}
.verdict { border-left: 6px solid var(--tone); padding: 20px 24px; margin: 14px 0 0; }
.verdict .word { margin: 0; font-size: clamp(26px, 4vw, 38px); line-height: 1.15; font-weight: 750; color: var(--tone); }
.verdict .word::first-letter { text-transform: uppercase; }
.verdict p { margin: 8px 0 0; font-size: 17px; text-wrap: pretty; }
.tone-good { --tone: var(--good); } .tone-care { --tone: var(--care); } .tone-refused { --tone: var(--refused); }
.reasons { margin: 16px 0 0; padding: 0; list-style: none; display: grid; gap: 10px; }
.reasons li { padding: 14px 18px; border-left: 4px solid var(--tone); }
.reasons strong { display: block; }
.reasons .figure { display: block; } .reasons .figure::first-letter { text-transform: uppercase; }
.reasons .figure, .note { color: var(--muted); font-size: 14.5px; }
.reasons .do { margin-top: 4px; }
.numbers { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; margin-top: 16px; }
.numbers div { padding: 14px 18px; }
.numbers b { display: block; font-size: 24px; font-variant-numeric: tabular-nums; }
.numbers span { color: var(--muted); font-size: 14px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 20px; align-items: start; }
.plot { padding: 14px 16px 10px; background: var(--card); margin: 0; }
.plot h3 { margin: 0 0 2px; font-size: 16px; }
.plot .note { margin: 0 0 8px; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 5px; }
.important th, .important td { background: var(--after); font-weight: 650; }
.failed { color: var(--refused); font-weight: 650; } .passed { color: var(--good); font-weight: 650; }
.flags { margin-top: 12px; }
.numeric th + th { white-space: nowrap; }
table.fixed td, table.fixed th { overflow-wrap: normal; }
@media (max-width: 760px) { .pair { grid-template-columns: 1fr; } .numbers { grid-template-columns: 1fr 1fr; } }
@media (max-width: 640px) {
  .verdict { padding: 16px 18px; }
  .wide { display: none; }
  .plot { padding: 12px 10px 8px; }
}
"""

TEMPLATE = """\
<h1>Report card of {{ card.model }}, measured on {{ card.dataset }}</h1>

<section class="card verdict tone-{{ color }}">
<p class="word">{{ card.verdict.word }}</p>
<p>{{ card.verdict.headline.partition(": ")[2][:1] | upper }}{{ card.verdict.headline.partition(": ")[2][1:] }}</p>
</section>
{% if card.verdict.reasons %}
<ul class="reasons">
{% for reason in card.verdict.reasons %}
<li class="card tone-{{ colors[reason.verdict] }}"><strong>{{ reason.what }}</strong><span class="figure">{{ reason.figure }}.</span><div class="do">{{ reason.do }}</div></li>
{% endfor %}
</ul>
{% else %}
<p class="note">No check speaks against it.</p>
{% endif %}
<div class="numbers">
<div class="card"><b>{{ card.accuracy.accuracy | percent }}</b><span>right, of {{ card.accuracy.n }} pairs</span></div>
<div class="card"><b>{{ (100 * card.best_baseline.difference) | signed(1) }}</b><span>points against the best simple rule</span></div>
<div class="card"><b>{{ card.length.correlation | signed }}</b><span>correlation with length</span></div>
<div class="card"><b>{{ card.probes | selectattr("failed") | list | length }} of {{ card.probes | selectattr("outcome", "in", ["fails", "passes"]) | list | length }}</b><span>probes failed</span></div>
</div>

<section>
<h2>Accuracy</h2>
<div class="pair">
<figure class="card plot"><h3>Against simple rules</h3>
<p class="note">Share of pairs whose chosen answer wins, with 95% intervals. The dashed line is a coin.</p>
{{ plots.accuracy | safe }}
<figcaption>On the same pairs, this model is {{ (100 * card.best_baseline.difference) | signed(1) }} points against “{{ card.best_baseline.baseline }}” (95% interval {{ (100 * card.best_baseline.low) | signed(1) }} to {{ (100 * card.best_baseline.high) | signed(1) }}). It is right where the rule is wrong on {{ card.best_baseline.better }} pairs, and wrong where the rule is right on {{ card.best_baseline.worse }} (p = {{ "%.2g" | format(card.best_baseline.p) }}).</figcaption>
</figure>
<figure class="card plot"><h3>By length ratio</h3>
<p class="note">Chosen divided by rejected, in characters. The upright mark is the better of two rules: the longer one wins, the shorter one wins.</p>
{{ plots.ratio | safe }}
<figcaption>The row “{{ similar }}” matters most: there, length decides little.</figcaption>
</figure>
</div>
{% for title, what, name, rows in tables %}
<h3>{{ title }}</h3>
<p class="note">{{ what }}</p>
<div class="card"><table class="fixed">
<thead><tr><th scope="col">Pairs</th><th scope="col" class="number">Count</th><th scope="col" class="number">Right</th><th scope="col" class="number wide">95% interval</th><th scope="col" class="number">Longer wins</th></tr></thead>
<tbody>
{% for row in rows %}
<tr{% if row.name == similar %} class="important"{% endif %}><th scope="row">{{ row.name }}</th><td class="number">{{ row.n }}</td><td class="number">{{ row.accuracy | percent }}</td><td class="number wide">{{ row.low | percent }} to {{ row.high | percent }}</td><td class="number">{{ row.longer_wins | percent }}</td></tr>
{% endfor %}
</tbody></table></div>
{% if name == "subset" and card.sections %}
<h3>RewardBench sections</h3>
<div class="card"><table class="fixed">
<thead><tr><th scope="col">Section</th><th scope="col" class="number">Subsets found</th><th scope="col" class="number">Average</th></tr></thead>
<tbody>
{% for section in card.sections %}
<tr><th scope="row">{{ section.name }}</th><td class="number">{{ section.found }} of {{ section.subsets }}</td><td class="number">{{ section.accuracy | percent }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}
{% endfor %}
</section>

<section>
<h2>What moves the reward</h2>
<div class="pair">
<figure class="card plot"><h3>Probabilities</h3>
<p class="note">Each dot is about {{ card.calibration.bins[0].n }} pairs. On the dashed line, a reward difference means what it says.</p>
{{ plots.calibration | safe }}
<figcaption>Expected calibration error {{ "%.3f" | format(card.calibration.error) }} (chance alone gives about {{ "%.3f" | format(card.calibration.error_by_chance) }}). Log-loss {{ "%.3f" | format(card.calibration.log_loss) }}; a model that knows nothing has 0.693.</figcaption>
</figure>
<figure class="card plot"><h3>Length</h3>
<p class="note">Each dot is a pair. <span class="key" style="background: var(--model)"></span>right <span class="key" style="background: var(--wrong); margin-left: 8px"></span>wrong. The line is the regression.</p>
{{ plots.length | safe }}
<figcaption>100 more {{ card.length.unit }} change the reward by {{ length_per_100 | signed }} standard deviations. Correlation {{ card.length.correlation | signed }} (95% interval {{ card.length.correlation_low | signed }} to {{ card.length.correlation_high | signed }}). The model prefers the longer text in {{ card.length.picks_longer | percent(0) }} of the {{ card.length.unequal }} pairs of different length, people in {{ card.length.people_pick_longer | percent(0) }}.</figcaption>
</figure>
</div>
</section>

{% if card.probes %}
<section>
<h2>Probes</h2>
<p class="note">Chosen answers, damaged in a named way. A good model rewards them less. A tie counts half. The mark is the share from which a probe fails.</p>
<div class="pair">
{% if plots.probes %}
<figure class="card plot"><h3>Damaged answers that are preferred</h3>
{{ plots.probes | safe }}
</figure>
{% endif %}
<div class="card"><table class="fixed">
<thead><tr><th scope="col">Probe</th><th scope="col" class="number">Preferred</th><th scope="col" class="number">Shift</th><th scope="col"></th></tr></thead>
<tbody>
{% for probe in card.probes %}
<tr><th scope="row">{{ probe.name }}<div class="note">{{ probe.what }}{% if not probe.n %} Not tried. {{ probe.then }}{% endif %}</div></th><td class="number">{% if probe.n %}{{ probe.preferred | percent(0) }}<div class="note">of {{ probe.counted }}</div>{% endif %}</td><td class="number">{% if probe.n %}{{ probe.shift | signed }}{% endif %}</td><td>{% if probe.n %}<span class="{{ {'fails': 'failed', 'passes': 'passed'}.get(probe.outcome, 'note') }}">{{ probe.outcome }}</span>{% endif %}</td></tr>
{% endfor %}
</tbody></table></div>
</div>
<p class="note">The shift is the mean change of the reward, in standard deviations of all rewards.</p>
</section>
{% endif %}

<section>
<h2>Rewards</h2>
<div class="pair">
<figure class="card plot"><h3>Distribution</h3>
<p class="note"><span class="key" style="background: var(--model)"></span>chosen <span class="key" style="background: var(--wrong); margin-left: 8px"></span>rejected</p>
{{ plots.rewards | safe }}
</figure>
<div>
<div class="card"><table>
<tbody>
<tr><th scope="row">Mean</th><td class="number">{{ "%.4g" | format(card.rewards.mean) }}</td></tr>
<tr><th scope="row">Standard deviation</th><td class="number">{{ "%.4g" | format(card.rewards.std) }}</td></tr>
{% for name, value in card.rewards.quantiles.items() %}
<tr><th scope="row">{{ name }} are at most</th><td class="number">{{ "%.4g" | format(value) }}</td></tr>
{% endfor %}
<tr><th scope="row">Pairs skipped</th><td class="number">{{ card.skipped.total }}</td></tr>
</tbody></table></div>
<p class="note">{% if card.skipped.total %}Of the skipped pairs, {{ card.skipped.too_long }} are too long{% if card.skipped.max_length %} (more than {{ card.skipped.max_length }} {{ card.length.unit }}){% endif %}, {{ card.skipped.refused }} are refused by the chat template, and {{ card.skipped.unscored }} got no reward.{% else %}Every pair was scored, and no text was cut.{% endif %}</p>
</div>
</div>
<h3>For PPO</h3>
<p>{{ card.scale.words }}</p>
{% if flags %}
<div class="card flags" tabindex="0"><pre><code>hf-rlhf ppo {{ flags }}</code></pre></div>
<p class="note">PPO then pays (reward − {{ "%.3g" | format(center) }}) / {{ "%.3g" | format(card.scale.scale) }}, with its running mean and standard deviation in place of these.</p>
{% endif %}
</section>

{% if card.mistakes %}
<section>
<h2>Worst mistakes</h2>
<p class="note">Pairs whose rejected answer has the higher reward by the most. Some are mistakes of the annotators.</p>
{% for each in card.mistakes %}
<article class="card sample">
<p class="prompt">{{ each.question or "(no question)" }}</p>
<div class="replies">
{% for name, text, reward in (("Chosen by people", each.chosen, each.chosen_reward), ("Preferred by the model", each.rejected, each.rejected_reward)) %}
<div class="reply"><header><span>{{ name }}</span><span>reward {{ reward | signed }}</span></header>
{% if text.strip() %}<p>{{ text }}</p>{% else %}<p class="empty">(empty)</p>{% endif %}
</div>
{% endfor %}
</div>
</article>
{% endfor %}
</section>
{% endif %}
<p class="note">Seed {{ card.seed }}.{% for name, version in card.versions.items() %} {{ name }} {{ version }}{{ "," if not loop.last else "." }}{% endfor %}</p>"""
