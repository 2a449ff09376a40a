"""Style and template of the page of an evaluation; `policy_page.py` says what stands in it."""

STYLE = """
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 20px; }
.figures figure { margin: 0; padding: 14px 16px 12px; background: var(--card); }
.figures h3 { margin: 0 0 6px; font-size: 16px; overflow-wrap: anywhere; }
.wins td, .wins th, .measures td, .measures th { overflow-wrap: normal; font-variant-numeric: tabular-nums; }
.wins span, .remark { color: var(--muted); font-size: 14px; }
.wins span { display: block; font-weight: 400; }
.wins td span, .counts { white-space: nowrap; }
.wins .by { overflow-wrap: anywhere; min-width: 130px; }
.wins .remark { min-width: 210px; }
.wins .rate { font-weight: 700; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 50%; margin: 0 5px 0 0; background: var(--model); }
.key.other { background: var(--other); }
.prompt { white-space: pre-wrap; }
.replies.all { grid-template-columns: repeat(auto-fit, minmax(min(100%, 240px), 1fr)); }
.replies.all .reply + .reply { background: none; }
.replies.all .reply:first-child { background: var(--after); }
.verdicts { margin: 0; padding: 10px 18px; border-top: 1px solid var(--line); color: var(--muted); font-size: 14px; overflow-wrap: anywhere; }
.notes li { margin-bottom: 6px; }
@media (max-width: 640px) {
  .replies.all { grid-template-columns: 1fr; }
  .wins th, .wins td, .measures th, .measures td { padding: 8px; font-size: 14px; }
  .wins td span, .wins th span { font-size: 12.5px; }
  .wins .by { min-width: 96px; }
  .figures figure { padding: 12px 10px 8px; }
}
"""

TEMPLATE = """\
<h1>{{ title }} on {{ results.prompts }} prompts of {{ results.dataset }}</h1>
<p class="headline">{{ results.headline }}</p>

{% if comparisons %}
<section>
<h2>Win rates</h2>
<div class="card" tabindex="0"><table class="wins">
<thead><tr><th scope="col">Compared by</th><th scope="col">Win rate</th><th scope="col">At equal length</th><th scope="col">Won / tied / lost</th><th scope="col">Besides</th></tr></thead>
<tbody>
{% for row in comparisons %}
<tr><th scope="row" class="by">{{ row.by }}<span>against {{ row.baseline }}</span></th><td class="rate">{{ row.rate }}{% if row.interval %}<span>{{ row.interval }}</span>{% endif %}</td><td>{{ row.controlled }}{% if row.controlled_interval %}<span>{{ row.controlled_interval }}</span>{% endif %}</td><td class="counts">{{ row.counts }}</td><td class="remark">{{ row.note }}</td></tr>
{% endfor %}
</tbody>
</table></div>
</section>
{% endif %}

{% if win_plots %}
<section>
<h2>Win rates with their intervals</h2>
<div class="figures">
{% for title, svg in win_plots %}
<figure class="card"><h3>{{ title }}</h3>{{ svg | safe }}<figcaption><i class="key"></i>win rate, with its 95% interval; <i class="key other"></i>at equal length. Right of the dashed line, the policy is preferred.</figcaption></figure>
{% endfor %}
</div>
</section>
{% endif %}

{% if length_plots %}
<section>
<h2>Length against win rate</h2>
<div class="figures">
{% for title, svg in length_plots %}
<figure class="card"><h3>By {{ title }}</h3>{{ svg | safe }}<figcaption>Upwards: how often the policy's completion is preferred. Dots: win rate, with its interval, of prompts with a similar length difference. Curve: the logistic regression whose value at 0 is the win rate at equal length. A steep curve means that length decides.</figcaption></figure>
{% endfor %}
</div>
</section>
{% endif %}

<section>
<h2>Completions in numbers</h2>
<div class="card" tabindex="0"><table class="measures">
<thead><tr><th scope="col">Measure</th>{% for name in results.models %}<th scope="col" class="number">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for name, cells in measures %}
<tr><th scope="row">{{ name }}</th>{% for cell in cells %}<td class="number">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table></div>
</section>

<section>
<h2>Read with care</h2>
{{ list_of(results.notes) }}
</section>

<section>
<h2>Completions side by side</h2>
<p class="remark">The first {{ samples | length }} of {{ all_samples }} prompts, in the order of the dataset. All are in samples.jsonl.</p>
{% for sample in samples %}
<article class="card sample">
<p class="prompt">{{ sample.prompt }}</p>
<div class="replies all">
{% for name, text, rewards in sample.completions %}
{{ reply(name, text, rewards) }}
{% endfor %}
</div>
{% if sample.verdicts %}<p class="verdicts">Preferred: {{ sample.verdicts | join(" \N{MIDDLE DOT} ") }}</p>{% endif %}
</article>
{% endfor %}
</section>

<section>
<h2>Settings</h2>
{{ table_of(settings) }}
</section>"""
