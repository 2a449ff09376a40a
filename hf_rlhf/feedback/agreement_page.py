"""A page on the agreement of annotators: one HTML file that loads nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_rlhf.evaluation.page import render_page
from hf_rlhf.records import write_whole

AGREEMENT_PAGE = "agreement.html"


_WORDS = {("pairwise", "side"): "which is better", ("pairwise", "strength"): "how much better"}


def judged(each: Mapping[str, Any]) -> str:
    """Return what annotators judged, in words: the form, and its question, criterion or field."""
    return f"{each['form']}: {_WORDS.get((each['form'], each['what']), each['what'])}"


def headline(report: Mapping[str, Any]) -> str:
    """Return the result in one sentence."""
    answers, names = report["answers"], len(report["annotators"])
    shared = [each for each in report["agreement"] if each["percent"]["value"] is not None]
    counted = f"{answers} answers of {names} annotator{'s' if names != 1 else ''}"
    if not shared:
        return f"{counted}; no task was answered by two of them, so there is no agreement to show"
    first = shared[0]
    share = f"{counted}: two of them agree on {first['percent']['value']:.0%} ({judged(first)})"
    alpha = first["alpha"].get("nominal", next(iter(first["alpha"].values())))["value"]
    return share if alpha is None else f"{share}, alpha {_number(alpha)}"


def notes(report: Mapping[str, Any]) -> list[str]:
    """Return what a reader should look into: annotators with a preference for a place, or wrong on gold questions."""
    found = []
    for each in report["annotators"]:
        position, gold, pace = each["position"], each["gold"], each["pace"]
        if position["flagged"]:
            found.append(
                f"{each['name']} prefers the completion that is shown first in {position['share']:.0%} of"
                f" {position['n']} answers. One half is expected."
            )
        if gold["n"] >= 5 and gold["accuracy"] < 0.7:
            found.append(f"{each['name']} answers {gold['right']} of {gold['n']} gold questions as expected.")
        if pace["n"] >= 5 and pace["hurried"] > pace["n"] / 4:
            found.append(f"{each['name']} takes less than a quarter of the usual time for {pace['hurried']} of {pace['n']} answers.")  # fmt: skip
    return found


def write_page(report: Mapping[str, Any], conversion: Mapping[str, Any], folder: Path) -> Path:
    """Write agreement.html whole or not at all, and return its path.

    Args:
        report: of `report_of`.
        conversion: the `report` of `convert`.
        folder: made when it is not there.
    """
    page = render_page(
        _TEMPLATE,
        title="Agreement of annotators",
        style=_STYLE,
        filters={"judged": judged, "percent": _percent, "number": _number, "interval": _interval},
        report=report,
        conversion=conversion,
        headline=headline(report),
        notes=notes(report),
    )
    folder.mkdir(parents=True, exist_ok=True)
    return write_whole(folder / AGREEMENT_PAGE, page)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def _interval(estimate: Mapping[str, float | None], form: str = "number") -> str:
    low, high = estimate["low"], estimate["high"]
    if low is None or high is None:
        return ""
    return f"{100 * low:.0f} to {100 * high:.0f}%" if form == "percent" else f"{_number(low)} to {_number(high)}"


_STYLE = """
.note { color: var(--muted); font-size: 14px; }
td .note { display: block; font-size: 13px; }
.care { padding: 14px 18px; margin: 0 0 12px; border-left: 4px solid #d55e00; }
.empty { padding: 14px 18px; margin: 0; }
th[scope="row"] .note { display: block; font-weight: 400; }
thead th, .number { overflow-wrap: normal; }
@media (max-width: 640px) {
  .wide, .number .note { display: none; }
  thead th.number { white-space: normal; }
  thead th { vertical-align: bottom; }
  tbody th { min-width: 118px; }
  th, td { padding: 9px 8px; }
}
"""

_TEMPLATE = """\
<h1>{{ title }}</h1>
<p class="headline">{{ headline }}</p>
{% for note in notes %}
<p class="card care">{{ note }}</p>
{% endfor %}
<section>
<h2>Agreement</h2>
<div class="card">
{% if report.agreement %}
<table>
<thead><tr><th scope="col">What was judged</th><th scope="col" class="number">Agree</th><th scope="col" class="number">Alpha</th><th scope="col" class="number wide">Alpha, in order</th><th scope="col" class="number wide">Alpha, as numbers</th></tr></thead>
<tbody>
{% for each in report.agreement %}
<tr><th scope="row">{{ each | judged }}<span class="note">{{ each.tasks }} tasks, {{ each.annotators }} annotators{% if each.kendalls_w is defined and each.kendalls_w.value is not none %}, Kendall's W {{ each.kendalls_w.value | number }}{% endif %}</span></th>
<td class="number">{{ each.percent.value | percent }}<span class="note">{{ each.percent | interval("percent") }}</span></td>
{% for level in ("nominal", "ordinal", "interval") %}
<td class="number{% if not loop.first %} wide{% endif %}">{% if level in each.alpha %}{{ each.alpha[level].value | number }}<span class="note">{{ each.alpha[level] | interval }}</span>{% endif %}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table>
{% else %}
<p class="empty">No answers yet.</p>
{% endif %}
</div>
<p class="note">Agree: the share of equal answers among two annotators of the same task. Alpha (Krippendorff): 1 is full agreement, 0 what chance gives; “in order” and “as numbers” count how far apart two answers are. A dash: there is nothing to compare, or all answers are equal. Below each: the 95% interval over resampled tasks, on a wide window. Trained annotators agree on 73 to 77% of pairs (Stiennon et al. 2020), so a low alpha alone is no fault.</p>
</section>
<section>
<h2>Annotators</h2>
<div class="card">
{% if report.annotators %}
<table>
<thead><tr><th scope="col">Name</th><th scope="col" class="number">Answers</th><th scope="col" class="number">Shown first preferred</th><th scope="col" class="number">Gold</th><th scope="col" class="number wide">Median time</th></tr></thead>
<tbody>
{% for each in report.annotators %}
<tr><th scope="row">{{ each.name }}<span class="note">{{ each.kind }}{% if each.skips %}, {{ each.skips }} skipped{% endif %}{% if each.flags %}, {{ each.flags }} flagged{% endif %}</span></th>
<td class="number">{{ each.answers }}</td>
<td class="number">{{ each.position.share | percent }}<span class="note">{{ each.position | interval("percent") }}</span></td>
<td class="number">{% if each.gold.n %}{{ each.gold.right }} of {{ each.gold.n }}{% else %}–{% endif %}</td>
<td class="number wide">{% if each.pace.median_seconds is not none %}{{ "%.1f" | format(each.pace.median_seconds) }} s{% else %}–{% endif %}</td></tr>
{% endfor %}
</tbody></table>
{% else %}
<p class="empty">Nobody has answered yet.</p>
{% endif %}
</div>
<p class="note">The order of two completions is drawn anew for each task and annotator, so the one that is shown first should be preferred half of the time. Gold: answers to questions whose right answer is known.</p>
</section>
{% for each in report.agreement if each.pairs %}
<section>
<h2>Two annotators, {{ each | judged }}</h2>
<div class="card"><table>
<thead><tr><th scope="col">Annotators</th><th scope="col" class="number">In common</th><th scope="col" class="number">Agree</th><th scope="col" class="number">Kappa</th>{% if each.pairs[0].kappa_linear is defined %}<th scope="col" class="number wide">Kappa, linear</th>{% endif %}</tr></thead>
<tbody>
{% for pair in each.pairs[:20] %}
<tr><th scope="row">{{ pair.annotators | join(", ") }}</th><td class="number">{{ pair.n }}</td><td class="number">{{ pair.percent.value | percent }}</td>
<td class="number">{{ pair.kappa.value | number }}<span class="note">{{ pair.kappa | interval }}</span></td>
{% if pair.kappa_linear is defined %}<td class="number wide">{{ pair.kappa_linear.value | number }}<span class="note">{{ pair.kappa_linear | interval }}</span></td>{% endif %}</tr>
{% endfor %}
</tbody></table></div>
{% if each.pairs | length > 20 %}
<p class="note">The 20 with the most answers in common, of {{ each.pairs | length }}.</p>
{% endif %}
</section>
{% endfor %}
<section>
<h2>Rows to train on</h2>
<div class="card"><table>
<thead><tr><th scope="col">Kind</th><th scope="col" class="number">Rows</th><th scope="col">Without a row</th></tr></thead>
<tbody>
{% for kind, rows in conversion.rows.items() if rows or conversion.omitted.get(kind) %}
<tr><th scope="row">{{ kind }}</th><td class="number">{{ rows }}</td><td>{% for why, count in conversion.omitted.get(kind, {}).items() %}{{ count }}: {{ why }}{% if not loop.last %}; {% endif %}{% endfor %}</td></tr>
{% else %}
<tr><td colspan="3">None yet.</td></tr>
{% endfor %}
</tbody></table></div>
<p class="note">{{ conversion.answers }} answers to {{ conversion.tasks_answered }} of {{ conversion.tasks }} tasks are used; {{ conversion.answers_to_gold }} to gold questions, {{ conversion.answers_to_flagged_tasks }} to flagged tasks and {{ conversion.skips }} skips are not.</p>
</section>"""
