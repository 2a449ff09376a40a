"""The plots of the report on rounds."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from hf_rlhf.evaluation.svg import Axes, line, picture, text

Rounds = Sequence[dict[str, Any]]


class Plot(NamedTuple):
    """A picture as SVG, with what stands above and below it."""

    title: str
    svg: str
    caption: str


class Point(NamedTuple):
    """A number of a round and its interval of 95%."""

    round: int
    value: float
    low: float
    high: float


def plot_rounds(rounds: Rounds, form: str) -> list[Plot]:
    """Draw the accuracy of reward models, rating, wins and KL of policies, and agreement over rounds.

    What was never measured gets no plot.
    """
    named = {
        "accuracy": _points(rounds, "reward_accuracy", "eval_accuracy", "eval_accuracy_low", "eval_accuracy_high"),
        "rating": _points(rounds, "rating", "mean", "low", "high"),
        "wins": _points(rounds, "wins", "rate", "low", "high"),
        "kl": _points(rounds, "kl", "mean", "low", "high"),
        "agreement": _points([{**row, **(row.get("agreement") or {})} for row in rounds], "percent", "value", "low", "high"),
    }  # fmt: skip
    texts = {
        "accuracy": (
            "Reward model",
            "right on held-out preferences",
            "Share of the held-out preferences of all rounds that the reward model of each round agrees with.",
        ),
        "rating": (
            "Policy, by the annotator's rating",
            "mean rating",
            "Rating of the policy's replies to held-out prompts, from 0 to 1. Round 0 is the start.",
        ),
        "wins": (
            "Policy against the start",
            "preferred to the start",
            "Share of comparisons in which annotators prefer the policy's reply to that of the start. Ties count half.",
        ),
        "kl": ("KL to the start", "nats a reply", "KL divergence of the policy from the start, on held-out prompts."),
        "agreement": (
            "Agreement of annotators",
            "equal answers",
            f"Share of two annotators' answers to the same question ({form}) that are equal.",
        ),
    }
    return [
        Plot(texts[name][0], _trend(points, *texts[name][1:], percent=name not in ("rating", "kl")), texts[name][2])
        for name, points in named.items()
        if points
    ]


def _points(rounds: Rounds, name: str, *keys: str) -> list[Point]:
    found = [(row["round"], [(row.get(name) or {}).get(key) for key in keys]) for row in rounds]
    known = [(number, [value for value in values if value is not None]) for number, values in found]
    return [Point(number, values[0], min(values), max(values)) for number, values in known if values]


def _trend(points: Sequence[Point], label: str, alt: str, *, percent: bool) -> str:
    """Draw numbers over rounds, with their intervals and a line between them."""
    first, last = points[0].round, points[-1].round
    ticks = [tick / 4 for tick in range(5)] if percent else _ticks(points)
    axes = Axes((first - 0.3, last + 0.4), (ticks[0], ticks[-1]))
    numbers = [each.round for each in points]
    parts = axes.frame([], ticks, "round", label, percent=percent)
    parts += [text(axes.x(number), axes.y(ticks[0]) + 18, str(number), "tick", "middle") for number in numbers]
    if percent:
        parts.append(line(axes.x(first - 0.3), axes.y(0.5), axes.x(last + 0.4), axes.y(0.5), "chance"))
    path = "L".join(f"{axes.x(each.round):.1f},{axes.y(each.value):.1f}" for each in points)
    parts.append(f'<path class="curve model" d="M{path}"/>')
    for each in points:
        x, y = axes.x(each.round), axes.y(each.value)
        parts.append(line(x, axes.y(each.low), x, axes.y(each.high), "interval model"))
        parts.append(f'<circle class="dot model" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        parts.append(text(x + 9, y - 7, f"{each.value:.0%}" if percent else f"{each.value:.2f}", "value"))
    return picture(parts, alt)


def _ticks(points: Sequence[Point]) -> list[float]:
    """Return three to seven multiples of a round number around all intervals and 0."""
    low, high = min(0.0, *(each.low for each in points)), max(each.high for each in points)
    size = max(high - low, 1e-6) / 4
    unit = 10.0 ** math.floor(math.log10(size))
    step = next(unit * each for each in (1, 2, 5, 10) if unit * each >= size)
    return [step * number for number in range(math.floor(low / step), math.ceil(high / step) + 1)]
