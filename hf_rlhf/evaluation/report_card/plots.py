"""Plots of the report card as inline SVG, which takes its colors from the page and so fits its light and dark theme."""

from collections.abc import Sequence
from dataclasses import dataclass

from hf_rlhf.evaluation.report_card.calibration import Calibration, LengthEffect
from hf_rlhf.evaluation.report_card.distribution import Distribution
from hf_rlhf.evaluation.svg import HEIGHT, WIDTH, Axes, line, picture, text


@dataclass(frozen=True, slots=True)
class Row:
    """A line of `interval_plot`: a share with its interval, a class for its color, and a second mark if any."""

    name: str
    value: float
    low: float
    high: float
    color: str = "model"
    mark: float | None = None
    note: str = ""


def interval_plot(rows: Sequence[Row], alt: str, chance: float | None = 0.5) -> str:
    """Draw shares from 0 to 100% as dots with their intervals, one line of text above each."""
    step, top = 42, 8
    height = top + step * len(rows) + 26
    bottom = top + step * len(rows)

    def x(value: float) -> float:
        return 8 + (WIDTH - 16) * value

    parts = [line(x(tick / 4), top, x(tick / 4), bottom, "grid") for tick in range(5)]
    if chance is not None:
        parts.append(line(x(chance), top, x(chance), bottom, "chance"))
    for number, row in enumerate(rows):
        y = top + step * number + 30
        parts += [
            text(8, y - 13, row.name, "label"),
            text(WIDTH - 8, y - 13, row.note or f"{row.value:.1%}", f"value {row.color}", "end"),
            line(8, y, WIDTH - 8, y, "track"),
            line(x(row.low), y, x(row.high), y, f"interval {row.color}"),
            f'<circle class="dot {row.color}" cx="{x(row.value):.1f}" cy="{y}" r="5.5"/>',
        ]
        if row.mark is not None:
            parts.append(line(x(row.mark), y - 8, x(row.mark), y + 8, "mark"))
    anchors = ("start", "middle", "middle", "middle", "end")
    parts += [text(x(n / 4), bottom + 18, f"{n * 25}%", "tick", anchor) for n, anchor in enumerate(anchors)]
    return picture(parts, alt, height)


def calibration_plot(calibration: Calibration, alt: str) -> str:
    """Draw the share of right preferences in each bin against its probability, with the line where both are equal."""
    high = max(0.6, _ceiling(max(each.probability for each in calibration.bins)))
    low_y = max(0.0, min(0.4, *(each.low // 0.1 * 0.1 for each in calibration.bins)))
    axes = Axes((0.5, high), (low_y, 1.0))
    ticks_x, ticks_y = _tenths(0.5, high), _tenths(low_y, 1.0)
    parts = axes.frame(ticks_x, ticks_y, "probability by the reward difference", "share right", percent=True)
    parts.append(line(axes.x(0.5), axes.y(0.5), axes.x(high), axes.y(high), "ideal"))
    for each in calibration.bins:
        x = axes.x(each.probability)
        parts.append(line(x, axes.y(each.low), x, axes.y(each.high), "interval model"))
        parts.append(f'<circle class="dot model" cx="{x:.1f}" cy="{axes.y(each.share):.1f}" r="5"/>')
    return picture(parts, alt, HEIGHT)


def length_plot(effect: LengthEffect, alt: str) -> str:
    """Draw reward differences against length differences of pairs, chosen minus rejected, with the regression line."""
    span_x = max(1.0, _outer([abs(x) for x, _ in effect.points]))
    span_y = max(1e-6, _outer([abs(y) for _, y in effect.points]))
    axes = Axes((-span_x, span_x), (-span_y, span_y))
    ticks_x, ticks_y = ([-span, -span / 2, 0.0, span / 2, span] for span in (span_x, span_y))
    unit = f"{effect.unit} of the chosen minus the rejected answer"
    parts = axes.frame(ticks_x, ticks_y, unit, "reward difference")
    parts += [
        line(axes.x(0), axes.y(-span_y), axes.x(0), axes.y(span_y), "zero"),
        line(axes.x(-span_x), axes.y(0), axes.x(span_x), axes.y(0), "zero"),
    ]
    for x, y in effect.points:
        if abs(x) <= span_x and abs(y) <= span_y:
            color = "model" if y > 0 else "wrong"
            parts.append(f'<circle class="point {color}" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="3"/>')
    end = min(span_x, span_y / abs(effect.slope)) if effect.slope else span_x
    ends = (axes.x(-end), axes.y(-end * effect.slope), axes.x(end), axes.y(end * effect.slope))
    return picture([*parts, line(*ends, "fit")], alt, HEIGHT)


def histogram(rewards: Distribution, alt: str) -> str:
    """Draw how many chosen and how many rejected answers have which reward."""
    most = max(*rewards.chosen, *rewards.rejected, 1)
    low, high = rewards.edges[0], rewards.edges[-1]
    axes = Axes((low, high), (0.0, float(most)))
    ticks = sorted({0, most // 2, most})
    parts = axes.frame([low + (high - low) * n / 4 for n in range(5)], list(map(float, ticks)), "reward", "answers")
    for name, counts in (("rejected", rewards.rejected), ("chosen", rewards.chosen)):
        path = f"M{axes.x(low):.1f},{axes.y(0):.1f}"
        for left, right, count in zip(rewards.edges[:-1], rewards.edges[1:], counts, strict=True):
            path += f"L{axes.x(left):.1f},{axes.y(count):.1f}L{axes.x(right):.1f},{axes.y(count):.1f}"
        path += f"L{axes.x(high):.1f},{axes.y(0):.1f}Z"
        parts.append(f'<path class="steps {name}" d="{path}"/>')
    return picture(parts, alt, HEIGHT)


def precision_recall_plot(
    points: Sequence[tuple[float, float]], chosen: tuple[float, float], chance: float, alt: str
) -> str:
    """Draw points of (recall, precision) as a line, the chosen one as a dot, and the precision of chance."""
    axes = Axes((0.0, 1.0), (0.0, 1.0))
    quarters = [tick / 4 for tick in range(5)]
    parts = axes.frame(quarters, quarters, "recall", "precision", percent=True)
    parts.append(line(axes.x(0), axes.y(chance), axes.x(1), axes.y(chance), "chance"))
    path = "L".join(f"{axes.x(recall):.1f},{axes.y(precision):.1f}" for recall, precision in points)
    parts.append(f'<path class="curve model" d="M{path}"/>')
    parts.append(f'<circle class="dot wrong" cx="{axes.x(chosen[0]):.1f}" cy="{axes.y(chosen[1]):.1f}" r="6"/>')
    return picture(parts, alt, HEIGHT)


def _tenths(low: float, high: float) -> list[float]:
    return [tick / 10 for tick in range(round(10 * low), round(10 * high) + 1)]


def _outer(sizes: Sequence[float]) -> float:
    """Return the 99% quantile, rounded up to two digits, so that single far points do not flatten the others."""
    ordered = sorted(sizes)
    size = ordered[int(0.99 * (len(ordered) - 1))]
    if size == 0:
        return ordered[-1]
    unit = 10.0 ** (len(f"{size:.0f}") - 2) if size >= 1 else float(f"1e{f'{size:.0e}'.partition('e')[2]}") / 10
    return -(-size // unit) * unit


def _ceiling(value: float) -> float:
    return min(1.0, -(-value // 0.1) * 0.1)
