"""One self-contained page that shows what training changed: numbers, curves, replies side by side, settings."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_rlhf.evaluation.metrics import BeforeAfter


@dataclass(frozen=True, slots=True)
class ReportFigure:
    """A PNG file to embed. `alt` says what the picture shows, for readers who do not see it."""

    path: str | Path
    caption: str
    alt: str = ""


@dataclass(frozen=True, slots=True)
class SamplePair:
    """One held-out prompt with the reply of each model and, where there are any, the annotator's ratings."""

    prompt: str
    before: str
    after: str
    rating_before: float | None = None
    rating_after: float | None = None


def write_report(
    path_html: str | Path,
    *,
    title: str,
    headline: str,
    summary_rows: Sequence[BeforeAfter],
    figures: Sequence[ReportFigure],
    samples: Sequence[SamplePair],
    settings: Mapping[str, Any],
    load_code: str = "",
    notes: Sequence[str] = (),
) -> Path:
    """Write the page and return its path.

    `headline` is the result in one sentence, `load_code` the lines that load the model, `notes` what a reader should
    bear in mind. Pictures are embedded and there are no scripts or links, so the file can be mailed or opened offline.
    All values are escaped; none is read as HTML or as a template.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(_PAGE).render(
        title=title,
        headline=headline,
        summary_rows=[(row.metric, *row.formatted()) for row in summary_rows],
        figures=[(_data_uri(figure.path), figure.caption, figure.alt or figure.caption) for figure in figures],
        samples=samples,
        settings=settings,
        load_code=load_code,
        notes=notes,
    )
    path = Path(path_html)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _data_uri(path: str | Path) -> str:
    return "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode("ascii")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root { --page: #f6f7f9; --card: #fff; --ink: #1f2630; --muted: #5d6878; --line: #e1e5ea; --accent: #0072b2; --after: #eaf3f9; }
@media (prefers-color-scheme: dark) {
  :root { --page: #12161c; --card: #1b2129; --ink: #e6eaf0; --muted: #9aa6b6; --line: #303946; --accent: #62b5e5; --after: #182b38; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { margin: 0 0 8px; font-size: 18px; font-weight: 600; color: var(--muted); }
.headline { margin: 0 0 32px; font-size: clamp(22px, 3.2vw, 32px); line-height: 1.25; font-weight: 700; text-wrap: balance; }
h2 { margin: 44px 0 14px; font-size: 20px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; overflow-x: auto; }
table { width: 100%; border-collapse: collapse; }
th, td { padding: 10px 18px; text-align: left; border-top: 1px solid var(--line); overflow-wrap: anywhere; }
thead th { border-top: 0; color: var(--muted); font-size: 14px; font-weight: 600; }
tbody th { font-weight: 500; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.change { font-weight: 700; color: var(--accent); }
figure { margin: 0 0 20px; }
figure .card { background: #fff; padding: 10px; }
img { display: block; width: 100%; max-width: 100%; height: auto; }
figcaption, .empty { color: var(--muted); font-size: 14px; }
figcaption { margin-top: 8px; }
.sample { margin-bottom: 16px; }
.prompt { margin: 0; padding: 12px 18px; font-weight: 600; overflow-wrap: anywhere; }
.replies { display: grid; grid-template-columns: 1fr 1fr; border-top: 1px solid var(--line); }
.reply { padding: 12px 18px 16px; min-width: 0; }
.reply + .reply { background: var(--after); border-left: 1px solid var(--line); }
.reply header { display: flex; justify-content: space-between; gap: 12px; font-size: 14px; font-weight: 600; color: var(--muted); }
.reply p { margin: 6px 0 0; white-space: pre-wrap; overflow-wrap: anywhere; }
pre { margin: 0; padding: 16px 18px; overflow-x: auto; font: 14px/1.5 ui-monospace, Consolas, "DejaVu Sans Mono", monospace; }
.settings th { width: 40%; }
.settings td { font-variant-numeric: tabular-nums; }
@media (max-width: 640px) {
  main { padding: 24px 14px 48px; }
  th, td { padding: 9px 10px; font-size: 14.5px; }
  .replies { grid-template-columns: 1fr; }
  .reply + .reply { border-left: 0; border-top: 1px solid var(--line); }
}
@media print { body { background: #fff; } .card, figure { break-inside: avoid; } }
</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
<p class="headline">{{ headline }}</p>

{% if summary_rows %}
<section>
<h2>Before and after</h2>
<div class="card"><table>
<thead><tr><th scope="col">Metric</th><th scope="col" class="number">Before</th><th scope="col" class="number">After</th><th scope="col" class="number">Change</th></tr></thead>
<tbody>
{% for metric, before, after, change in summary_rows %}
<tr><th scope="row">{{ metric }}</th><td class="number">{{ before }}</td><td class="number">{{ after }}</td><td class="number change">{{ change }}</td></tr>
{% endfor %}
</tbody>
</table></div>
</section>
{% endif %}

{% if figures %}
<section>
<h2>Training</h2>
{% for source, caption, alt in figures %}
<figure><div class="card" tabindex="0"><img src="{{ source }}" alt="{{ alt }}"></div><figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
</section>
{% endif %}

{% if samples %}
<section>
<h2>Replies to held-out prompts</h2>
{% for sample in samples %}
<article class="card sample">
<p class="prompt">{{ sample.prompt }}</p>
<div class="replies">
{% for name, text, rating in (("Before", sample.before, sample.rating_before), ("After", sample.after, sample.rating_after)) %}
<div class="reply"><header><span>{{ name }}</span>{% if rating is not none %}<span>rating {{ "%.2f" | format(rating) }}</span>{% endif %}</header>
{% if text.strip() %}<p>{{ text }}</p>{% else %}<p class="empty">(empty reply)</p>{% endif %}
</div>
{% endfor %}
</div>
</article>
{% endfor %}
</section>
{% endif %}

{% if load_code %}
<section>
<h2>Use the model</h2>
<div class="card" tabindex="0"><pre><code>{{ load_code }}</code></pre></div>
</section>
{% endif %}

{% if settings %}
<section>
<h2>Settings</h2>
<div class="card"><table class="settings"><tbody>
{% for name, value in settings.items() %}
<tr><th scope="row">{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}
</tbody></table></div>
</section>
{% endif %}

{% if notes %}
<section>
<h2>Read with care</h2>
<ul>
{% for note in notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
</section>
{% endif %}
</main>
</body>
</html>
"""
