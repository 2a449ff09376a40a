"""The threshold of a model of labels: chosen on one half of the held-out rows, and measured on the other."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_rlhf.errors import InputError
from hf_rlhf.evaluation.thresholds import (
    OperatingPoint,
    average_precision,
    choose_point,
    operating_point,
    precision_recall,
)
from hf_rlhf.records import write_whole
from hf_rlhf.rewards.moderation import THRESHOLD_FILE

THRESHOLD_PAGE = "threshold.html"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ThresholdReport:
    """A threshold on the reward, and what flagging every reward from there on gives.

    Attributes:
        rule: how it was chosen, in words.
        chosen_on: precision and recall on the rows that it was chosen on.
        measured_on: and on other rows, which say what to expect.
        separate: whether those are other rows; False where there were too few.
        curve: one point for each threshold, on the rows of `measured_on`.
    """

    rule: str
    chosen_on: OperatingPoint
    measured_on: OperatingPoint
    separate: bool
    curve: list[OperatingPoint]

    @property
    def threshold(self) -> float:
        """The least reward that is flagged."""
        return self.chosen_on.threshold

    @property
    def headline(self) -> str:
        """The result in one sentence."""
        at = self.measured_on
        precision = "not defined (nothing is flagged)" if math.isnan(at.precision) else f"{at.precision:.0%}"
        return (
            f"A threshold of {self.threshold:.3g} flags {at.flagged} of {at.rows} rows: precision {precision}, recall"
            f" {at.recall:.0%}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the content of threshold.json."""
        return {
            "threshold": self.threshold,
            "probability": 1 / (1 + math.exp(-self.threshold)) if self.threshold > -700 else 0.0,
            "rule": self.rule,
            "separate": self.separate,
            "average_precision": average_precision(self.curve),
            "chosen_on": self.chosen_on.to_dict(),
            "measured_on": self.measured_on.to_dict(),
            "curve": [[point.threshold, point.recall, point.precision] for point in self.curve],
        }

    def metrics(self) -> dict[str, float]:
        """Return the numbers for evaluation.json; a precision that is not defined is not among them."""
        numbers = {
            "eval_threshold": self.threshold,
            "eval_precision": self.measured_on.precision,
            "eval_recall": self.measured_on.recall,
            "eval_average_precision": average_precision(self.curve),
        }
        return {name: value for name, value in numbers.items() if not math.isnan(value)}

    def write(self, folder: Path) -> Path:
        """Write threshold.json and threshold.html to `folder`, each whole or not at all; return the page's path."""
        content = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        page = _page(self)
        write_whole(folder / THRESHOLD_FILE, content)
        return write_whole(folder / THRESHOLD_PAGE, page)


def find_threshold(
    rewards: Sequence[float],
    labels: Sequence[bool],
    prompts: Sequence[bytes],
    *,
    min_precision: float | None = None,
    min_recall: float | None = None,
) -> ThresholdReport:
    """Choose a threshold on the rows of half of the prompts, and measure it on the others.

    Args:
        rewards: of the rows.
        labels: True for a row that should be flagged.
        prompts: a fingerprint for each row; rows of one prompt are in one half.
        min_precision, min_recall: a limit that the choice keeps, see `choose_point`. By default the F1 is highest.

    Where a half lacks one of the labels, all rows are used for both. Where no threshold keeps the limit, the F1 is
    highest. Each is answered with a warning. Raises `InputError` where no row, or every row, is to be flagged, and for
    both limits.
    """
    if len(set(labels)) < 2:
        raise InputError("a threshold needs held-out rows of both labels. Give rows with each.")
    halves = [[row for row, prompt in enumerate(prompts) if prompt[0] % 2 == half] for half in (0, 1)]
    separate = all(len({labels[row] for row in half}) == 2 for half in halves)
    if not separate:
        logger.warning(
            "The threshold is chosen and measured on the same %d rows, so its precision and recall are too good: a half"
            " of the prompts has rows of one label alone. Hold out more rows.",
            len(labels),
        )
        halves = [list(range(len(labels)))] * 2
    first, second = (([rewards[row] for row in half], [labels[row] for row in half]) for half in halves)
    rule = "highest F1"
    points = precision_recall(*first)
    try:
        point = choose_point(points, min_precision=min_precision, min_recall=min_recall)
        if min_precision is not None:
            rule = f"highest recall with a precision of at least {min_precision:g}"
        elif min_recall is not None:
            rule = f"highest precision with a recall of at least {min_recall:g}"
    except InputError as error:
        if min_recall is not None:
            raise
        logger.warning("%s The threshold of the highest F1 is taken instead.", error)
        point = choose_point(points)
        rule = f"highest F1, since no threshold has a precision of {min_precision}"
    measured = operating_point(*second, point.threshold)
    return ThresholdReport(rule, point, measured, separate, precision_recall(*second))


def _page(report: ThresholdReport) -> str:
    from hf_rlhf.evaluation.page import render_page
    from hf_rlhf.evaluation.report_card.page_template import STYLE
    from hf_rlhf.evaluation.report_card.plots import precision_recall_plot
    from hf_rlhf.evaluation.svg import SVG_STYLE

    at = report.measured_on
    plot = precision_recall_plot(
        [(point.recall, point.precision) for point in report.curve],
        (at.recall, 0.0 if math.isnan(at.precision) else at.precision),
        at.positives / at.rows,
        "Precision against recall at every threshold, with the chosen one",
    )
    halves = [("Measured on", at)]
    if report.separate:
        halves.append(("Chosen on", report.chosen_on))
    return render_page(
        _TEMPLATE,
        title="Threshold of a moderation model",
        style=SVG_STYLE + STYLE,
        report=report,
        plot=plot,
        halves=[(name, each.to_dict()) for name, each in halves],
        average=average_precision(report.curve),
        share=at.positives / at.rows,
    )


_TEMPLATE = """\
<h1>{{ title }}</h1>
<p class="headline">{{ report.headline }}</p>
{% if not report.separate %}
<p class="card verdict tone-care">The threshold was chosen and measured on the same rows, so these figures are too good. Hold out more rows.</p>
{% endif %}
<section>
<h2>Precision and recall</h2>
<div class="card"><table class="numeric fixed">
<thead><tr><th scope="col">Held-out rows</th><th scope="col" class="number">Flagged</th><th scope="col" class="number">Precision</th><th scope="col" class="number">Recall</th><th scope="col" class="number">F1</th></tr></thead>
<tbody>
{% for name, half in halves %}
<tr{% if loop.first %} class="important"{% endif %}><th scope="row">{{ name }} {{ half.rows }}</th>
<td class="number">{{ half.flagged }}</td>
{% for rate in ("precision", "recall") %}
<td class="number">{% if half[rate] is none %}not defined{% else %}{{ "%.0f" | format(100 * half[rate]) }}%<span class="wide note"> ({{ "%.0f" | format(100 * half[rate + "_low"]) }} to {{ "%.0f" | format(100 * half[rate + "_high"]) }}%)</span>{% endif %}</td>
{% endfor %}
<td class="number">{% if half.f1 is none %}not defined{% else %}{{ "%.2f" | format(half.f1) }}{% endif %}</td></tr>
{% endfor %}
</tbody></table></div>
<p class="note">{% if report.separate %}The threshold was chosen on the rows of half of the prompts, and measured on those of the others. {% endif %}Precision: the share of flagged rows that people flagged. Recall: the share of rows that people flagged that are flagged here. In brackets: 95% intervals (Wilson). The threshold has the {{ report.rule }}.</p>
</section>
<section>
<h2>Every other threshold</h2>
<figure class="card plot">{{ plot | safe }}</figure>
<p class="note">The dot is the threshold of {{ "%.3g" | format(report.threshold) }}. The dashed line is the precision of flagging at random: {{ "%.0f" | format(100 * share) }}% of the rows should be flagged. Average precision: {{ "%.2f" | format(average) }}.</p>
</section>"""
