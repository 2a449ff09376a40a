"""The report card as one page without scripts or links, for a wide or a narrow window, in a light and a dark theme."""

from collections.abc import Sequence

from hf_rlhf.evaluation.page import render_page
from hf_rlhf.evaluation.report_card import plots
from hf_rlhf.evaluation.report_card.agreement import SIMILAR, Agreement
from hf_rlhf.evaluation.report_card.card import ReportCard
from hf_rlhf.evaluation.report_card.page_template import STYLE, TEMPLATE
from hf_rlhf.evaluation.report_card.verdict import CARE, GOOD, REFUSED
from hf_rlhf.evaluation.svg import SVG_STYLE

_TABLES = {
    "length_ratio": ("By length ratio", "Characters of the chosen answer divided by those of the rejected one."),
    "length": ("By length", "Length of the longer text of a pair, the prompt included."),
    "margin": ("By margin", "How much better the chosen answer is, by the column margin."),
    "source": ("By source", "Where a pair comes from, by the column source."),
    "subset": ("By subset", "By the column subset, as in RewardBench."),
}
_COLORS = {GOOD: "good", CARE: "care", REFUSED: "refused"}


def page_of(card: ReportCard) -> str:
    """Return the page as HTML. All texts are escaped; none is read as HTML or as a template."""
    return render_page(
        TEMPLATE,
        title=f"Report card: {card.model}",
        style=SVG_STYLE + STYLE,
        filters={"percent": percent, "signed": signed},
        card=card,
        color=_COLORS[card.verdict.word],
        colors=_COLORS,
        plots=_plots(card),
        tables=[(*_TABLES[name], name, rows) for name, rows in card.tables.items()],
        similar=SIMILAR,
        length_per_100=100 * card.length.slope / card.rewards.std if card.rewards.std else 0.0,
        flags=" ".join(f"--{name} {_flag(value)}" for name, value in card.scale.flags.items()),
        center=card.scale.center if card.scale.flags.get("use_score_norm") else 0.0,
    )


def percent(value: float, digits: int = 1) -> str:
    """Return a share as a percentage."""
    return f"{100 * value:.{digits}f}%"


def signed(value: float, digits: int = 2) -> str:
    """Return a number with its sign, a real minus included."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _flag(value: bool | float) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def _plots(card: ReportCard) -> dict[str, str]:
    own = card.accuracy
    baselines = sorted(card.baselines, key=lambda each: -each.accuracy)
    rows = [plots.Row("this model", own.accuracy, own.low, own.high)]
    rows += [plots.Row(each.name, each.accuracy, each.low, each.high, "other") for each in baselines]
    probes = [
        plots.Row(
            each.name,
            each.preferred,
            each.low,
            each.high,
            "wrong" if each.failed else "model" if each.outcome == "passes" else "other",
            each.fails_at,
            f"{each.outcome}, {each.preferred:.0%}",
        )
        for each in card.probes
        if each.n
    ]
    return {
        "accuracy": plots.interval_plot(rows, f"This model is right on {own.accuracy:.1%} of the pairs; the rules below"),
        "ratio": plots.interval_plot(_groups(card.tables["length_ratio"]), "Accuracy by length ratio"),
        "calibration": plots.calibration_plot(card.calibration, "Share right against the probability"),
        "length": plots.length_plot(card.length, "Score differences against length differences"),
        "rewards": plots.histogram(card.rewards, "Rewards of chosen and rejected answers"),
        "probes": plots.interval_plot(probes, "Share of damaged answers preferred", None) if probes else "",
    }  # fmt: skip


def _groups(groups: Sequence[Agreement]) -> list[plots.Row]:
    return [plots.Row(f"{each.name}, {each.n} pairs", each.accuracy, each.low, each.high, mark=each.by_length) for each in groups]  # fmt: skip
