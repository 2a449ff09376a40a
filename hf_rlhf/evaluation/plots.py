"""Pictures of a run, drawn from the rows of `metrics.jsonl`. Needs the extra `report`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from hf_rlhf.evaluation.held_out import Frontier

# Okabe and Ito's colors, which stay apart under color blindness.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#AA4488"
INK, MUTED, GRID = "#22272E", "#667080", "#E6E9ED"
DPI = 150

Rows = Sequence[Mapping[str, Any]]


def plot_training(rows: Rows, path_png: str | Path, *, title: str = "PPO training") -> Path:
    """Draw reward, KL, the update, the value function, length and entropy over iterations into one PNG.

    A key that no row has leaves a panel that says "not logged". Returns the path. Raises `InputError` without
    matplotlib.
    """
    figure = _new_figure(14.0, 8.0)
    axes = figure.subplots(2, 3)
    _reward(axes[0, 0], rows)
    _kl(axes[0, 1], rows)
    _lengths(axes[0, 2], rows)
    _value(axes[1, 0], rows)
    _update(axes[1, 1], rows)
    _entropy(axes[1, 2], rows)
    for ax in axes[1]:
        ax.set_xlabel("iteration", color=MUTED, fontsize=9.5)
    figure.suptitle(title, x=0.014, ha="left", fontsize=16, fontweight="bold", color=INK)
    return _save(figure, path_png)


def plot_frontier(frontier: Frontier, path_png: str | Path) -> Path:
    """Draw the reward and the held-out reward of each evaluation over its KL, with the best of n, into one PNG.

    Returns the path. Raises `InputError` without matplotlib.
    """
    figure = _new_figure(11.0, 4.6)
    axes = figure.subplots(1, 2)
    panels = ("reward", "Reward that is trained on"), ("held_out", "Held-out reward")
    for ax, color, (field, title) in zip(axes, (BLUE, ORANGE), panels, strict=True):
        _style(ax, title, "mean of a reply")
        points = frontier.evaluations
        x, y = [max(point.kl, 0.0) ** 0.5 for point in points], [getattr(point, field) for point in points]
        errors = [point.error or 0.0 for point in points] if field == "held_out" else None
        ax.errorbar(x, y, errors, color=color, marker="o", markersize=4, linewidth=1.6, elinewidth=0.9, label="policy")
        if frontier.best_of_n:
            best = frontier.best_of_n
            line = [point.kl**0.5 for point in best], [getattr(point, field) for point in best]
            ax.plot(
                *line, color=MUTED, marker="s", markersize=3.5, linestyle=(0, (5, 2)), label="best of n of the start"
            )
        if field == "held_out":
            saved = frontier.saved
            place = (max(saved.kl, 0.0) ** 0.5, saved.held_out)
            ax.plot(
                *place,
                marker="*",
                markersize=15,
                color=GREEN,
                linestyle="",
                zorder=5,
                label=f"saved: update {saved.step}",
            )
        ax.set_xlabel("square root of the KL to the reference (nats)", color=MUTED, fontsize=9.5)
        _legend(ax)
    return _save(figure, path_png)


def plot_rating_histogram(
    before: Sequence[float], after: Sequence[float], path: str | Path, *, label: str = "annotator rating"
) -> Path:
    """Draw the two distributions of ratings and their means into one PNG. Returns the path.

    Raises `ValueError` where either is empty and `InputError` without matplotlib.
    """
    if not before or not after:
        raise ValueError(f"{len(before)} ratings before and {len(after)} after: both are needed for a histogram")
    figure = _new_figure(10.0, 4.0)
    ax = figure.subplots()
    low, high = min(0.0, *before, *after), max(1.0, *before, *after)
    bins = [low + (high - low) * i / 20 for i in range(21)]
    _style(ax, "Ratings on held-out prompts, before and after training")
    for ratings, color, name in ((before, MUTED, "before"), (after, BLUE, "after")):
        mean = fmean(ratings)
        ax.hist(ratings, bins=bins, color=color, alpha=0.45, edgecolor="white", linewidth=0.8, zorder=2)
        ax.hist(ratings, bins=bins, histtype="step", color=color, linewidth=1.4, zorder=3)
        ax.axvline(mean, color=color, linewidth=1.8, linestyle=(0, (4, 2)), zorder=4, label=f"{name}, mean {mean:.2f}")
    ax.set_xlim(low, high)
    ax.set_xlabel(label, color=MUTED, fontsize=9.5)
    ax.set_ylabel("replies", color=MUTED, fontsize=9.5)
    _whole_numbers(ax.yaxis)
    _legend(ax)
    return _save(figure, path)


def _reward(ax: Axes, rows: Rows) -> None:
    _style(ax, "Reward", "mean reward per reply")
    x, y = _series(rows, "reward")
    std = dict(zip(*_series(rows, "reward_std"), strict=True))
    if x and all(i in std for i in x):
        low, high = ([v + sign * std[i] for i, v in zip(x, y, strict=True)] for sign in (-1, 1))
        ax.fill_between(x, low, high, color=BLUE, alpha=0.12, linewidth=0, label="± std")
    _line(ax, rows, "reward", BLUE, "training")
    _points(ax, rows, "eval_reward", ORANGE, "held-out")
    _finish(ax)


def _kl(ax: Axes, rows: Rows) -> None:
    _style(ax, "KL divergence from the reference", "nats per reply")
    _line(ax, rows, "objective/kl", BLUE, "training")
    _points(ax, rows, "eval_kl", ORANGE, "held-out")
    coefficient = _twin(ax, "KL coefficient", PURPLE)
    _line(coefficient, rows, "objective/kl_coef", PURPLE, "KL coefficient (right)", dashed=True)
    coefficient.set_ylim(0, 1.25 * max(_series(rows, "objective/kl_coef")[1], default=0.0) or 1.0)
    _finish(ax, coefficient)


def _lengths(ax: Axes, rows: Rows) -> None:
    _style(ax, "Length of the replies", "tokens")
    _line(ax, rows, "completions/mean_length", BLUE, "mean length")
    share = _twin(ax, "share cut off", ORANGE)
    _line(share, rows, "completions/clipped_ratio", ORANGE, "cut off at the limit (right)", dashed=True)
    _percent(share, top=1.0)
    _finish(ax, share)


def _value(ax: Axes, rows: Rows) -> None:
    _style(ax, "Value function", "value loss")
    _line(ax, rows, "loss/value_avg", BLUE, "value loss")
    explained = _twin(ax, "explained variance", GREEN)
    _line(explained, rows, "val/explained_variance", GREEN, "explained variance (right)", dashed=True)
    x, values = _series(rows, "val/explained_variance")
    if values:
        explained.set_ylim(max(-1.0, min(0.0, *values) - 0.05), 1.05)
    if below := [i for i, value in zip(x, values, strict=True) if value < -1.0]:
        explained.plot(below, [-1.0] * len(below), color=GREEN, linestyle="", marker="v", clip_on=False)
        note = f"\N{BLACK DOWN-POINTING TRIANGLE} below -1, down to {min(values):.3g}"
        paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}
        explained.text(
            0.98, 0.05, note, transform=explained.transAxes, ha="right", color=GREEN, fontsize=8.8, bbox=paper, zorder=5
        )
    _finish(ax, explained)


def _update(ax: Axes, rows: Rows) -> None:
    _style(ax, "Size of the update", "tokens clipped")
    _line(ax, rows, "policy/clipfrac_avg", BLUE, "clip fraction")
    _percent(ax)
    approximate = _twin(ax, "nats per token", GREEN)
    _line(approximate, rows, "policy/approxkl_avg", GREEN, "KL old to new policy (right)", dashed=True)
    _finish(ax, approximate)


def _entropy(ax: Axes, rows: Rows) -> None:
    _style(ax, "Entropy of the policy", "nats per token")
    _line(ax, rows, "policy/entropy_avg", BLUE, "entropy")
    _finish(ax)


def _series(rows: Rows, key: str) -> tuple[list[float], list[float]]:
    """Return the iterations at which a key has a finite number, and the numbers.

    Rows without an iteration count from 1.
    """
    points = [
        (float(row.get("iteration") or i), float(row[key]))
        for i, row in enumerate(rows, start=1)
        if isinstance(row.get(key), (int, float)) and math.isfinite(row[key])
    ]
    return [x for x, _ in points], [y for _, y in points]


def _line(ax: Axes, rows: Rows, key: str, color: str, label: str, *, dashed: bool = False) -> None:
    """Draw a key; a long series is drawn pale, with its moving average over it."""
    x, y = _series(rows, key)
    if not x:
        return
    dashes = (0, (5, 2)) if dashed else "-"
    if len(x) <= 40:
        marker = "o" if len(x) < 3 else ""
        ax.plot(x, y, color=color, linestyle=dashes, linewidth=1.8, marker=marker, zorder=3, label=label)
        return
    half = max(2, len(y) // 40)
    windows = [y[max(0, i - half) : i + half + 1] for i in range(len(y))]
    ax.plot(x, y, color=color, linewidth=0.9, alpha=0.35, zorder=3)
    ax.plot(x, [fmean(w) for w in windows], color=color, linestyle=dashes, linewidth=2.0, zorder=3, label=label)


def _points(ax: Axes, rows: Rows, key: str, color: str, label: str) -> None:
    x, y = _series(rows, key)
    if x:
        marker = "o" if len(x) <= 30 else ""
        ax.plot(x, y, color=color, linewidth=1.5, marker=marker, markeredgecolor="white", zorder=4, label=label)


def _new_figure(width: float, height: float) -> Figure:
    """Make a figure without pyplot, so that no global state is read or changed."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise InputError('plots need matplotlib. Install it with: pip install "hf-rlhf[report]"') from error
    layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.12, wspace=0.03, hspace=0.03)  # pads in inches
    return Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout=layout)


def _style(ax: Axes, title: str, ylabel: str = "") -> None:
    ax.set_title(title, loc="left", fontsize=11.5, fontweight="bold", color=INK, pad=25)
    ax.set_ylabel(ylabel, color=MUTED, fontsize=9.5)
    ax.grid(color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#C5CBD3")
    ax.tick_params(colors=MUTED, labelsize=9, length=3)


def _twin(ax: Axes, ylabel: str, color: str) -> Axes:
    """Add a second scale on the right, in the color of its line and without a grid."""
    twin = ax.twinx()
    twin.set_ylabel(ylabel, color=color, fontsize=9.5)
    twin.spines[["top", "left", "bottom"]].set_visible(False)
    twin.spines["right"].set_color("#C5CBD3")
    twin.tick_params(colors=color, labelsize=9, length=3)
    return twin


def _percent(ax: Axes, top: float | None = None) -> None:
    from matplotlib.ticker import PercentFormatter

    ax.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    ax.set_ylim(bottom=0.0, top=top)


def _whole_numbers(axis: Axis) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def _finish(ax: Axes, twin: Axes | None = None) -> None:
    """Add one legend for both scales, hide a scale without data, and say so in an empty panel."""
    if twin is not None and not twin.lines:
        twin.set_axis_off()
    if not ax.lines and (twin is None or not twin.lines):
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_ylabel("")
        ax.text(0.5, 0.5, "not logged", transform=ax.transAxes, ha="center", va="center", color=MUTED, fontsize=11)
        return
    if not ax.lines:
        ax.set_yticks([])
        ax.set_ylabel("")
    _whole_numbers(ax.xaxis)
    _legend(ax, twin)


def _legend(ax: Axes, twin: Axes | None = None) -> None:
    """Add one legend for both scales between the title and the panel, where it never covers data."""
    handles, labels = ax.get_legend_handles_labels()
    if twin is not None:
        more_handles, more_labels = twin.get_legend_handles_labels()
        handles, labels = handles + more_handles, labels + more_labels
    ax.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(-0.02, 0.985), ncols=len(labels), frameon=False,
        fontsize=8.8, labelcolor=INK, handlelength=1.7, handletextpad=0.5, columnspacing=1.3,
    )  # fmt: skip


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=DPI)
    return path
