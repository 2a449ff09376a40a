"""One self-contained page that shows what training changed: numbers, curves, replies side by side, settings."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_rlhf.evaluation.metrics import BeforeAfter
from hf_rlhf.evaluation.page import render_page


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
    page = render_page(
        _PAGE,
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


_PAGE = """\
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
{{ reply(name, text, "" if rating is none else "rating %.2f" | format(rating)) }}
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
{{ table_of(settings) }}
</section>
{% endif %}

{% if notes %}
<section>
<h2>Read with care</h2>
{{ list_of(notes) }}
</section>
{% endif %}"""
