"""The page of the report on rounds."""

STYLE = """
.figures { display: grid; grid-template-columns: 1fr 1fr; gap: 20px; }
.figures figure { margin: 0; padding: 14px 16px 12px; background: var(--card); }
.figures h3 { margin: 0 0 6px; font-size: 16px; }
.rounds { min-width: 940px; }
.rounds th, .rounds td { font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.rounds td span { color: var(--muted); font-size: 14px; white-space: nowrap; }
.replies.all { grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); }
.replies.all .reply + .reply { background: none; }
.replies.all .reply:last-child { background: var(--after); }
@media (max-width: 640px) {
  .figures { grid-template-columns: 1fr; }
  .replies.all { grid-template-columns: 1fr; }
}
"""

TEMPLATE = """\
<h1>{{ title }}</h1>
<p class="headline">{{ headline }}</p>

<section>
<h2>Round by round</h2>
<div class="card" tabindex="0"><table class="rounds">
<thead><tr>
{% for name in ("Round", "Preferences", "Reward model's accuracy", "Agreement", "Policy's rating", "Preferred to the start", "KL to the start", "Replies finished") %}
<th scope="col">{{ name }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in rows %}
<tr><th scope="row">{{ row[0] }}</th>{% for value, interval in row[1:] %}<td>{{ value }}{% if interval %} <span>{{ interval }}</span>{% endif %}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table></div>
</section>

<section>
<h2>Over rounds</h2>
<div class="figures">
{% for plot in plots %}
<figure class="card"><h3>{{ plot.title }}</h3>{{ plot.svg | safe }}<figcaption>{{ plot.caption }}</figcaption></figure>
{% endfor %}
</div>
</section>

<section>
<h2>Replies to held-out prompts</h2>
{% for sample in samples %}
<article class="card sample">
<p class="prompt">{{ sample.prompt }}</p>
<div class="replies all">
{% for name, text, rating in sample.replies %}
{{ reply(name, text, "" if rating is none else "rating %.2f" | format(rating)) }}
{% endfor %}
</div>
</article>
{% endfor %}
</section>

<section>
<h2>Settings</h2>
{{ table_of(settings) }}
</section>

<section>
<h2>Read with care</h2>
{{ list_of(notes) }}
</section>"""
