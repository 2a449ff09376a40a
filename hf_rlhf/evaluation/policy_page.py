"""The page of an evaluation: one file without scripts or links, made of evaluation.json and samples.jsonl alone."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from hf_rlhf.evaluation.metrics import preference_rate
from hf_rlhf.evaluation.opinions import JUDGE, PEOPLE, REWARD
from hf_rlhf.evaluation.page import render_page
from hf_rlhf.evaluation.policy_page_template import STYLE, TEMPLATE
from hf_rlhf.evaluation.policy_tables import compared_by, comparison_rows, measure_rows
from hf_rlhf.evaluation.report_card.plots import Row, interval_plot
from hf_rlhf.evaluation.svg import SVG_STYLE, Axes, line, picture
from hf_rlhf.records import write_whole

SHOWN_SAMPLES = 24
_BINS = 5
_LEAST_IN_A_BIN = 4


def write_policy_page(path: Path, results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> Path:
    """Write the page and return its path. All values are escaped; none is read as HTML or as a template."""
    page = render_page(
        TEMPLATE,
        title=f"Evaluation of {results['policy']}",
        style=SVG_STYLE + STYLE,
        results=results,
        comparisons=comparison_rows(results),
        measures=measure_rows(results),
        win_plots=win_plots(results),
        length_plots=length_plots(results, samples),
        samples=[_sample(each) for each in samples[:SHOWN_SAMPLES]],
        all_samples=len(samples),
        settings=_settings(results),
    )
    return write_whole(path, page)


def win_plots(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a title and a picture of the win rates against each baseline, with their intervals."""
    plots = []
    for baseline in results["kl"]:
        rows = []
        for each in results["comparisons"]:
            if each["baseline"] != baseline or not each["win_rate"]:
                continue
            for found, name, color in (
                (each["win_rate"], _short(compared_by(each)), "model"),
                (each["length_controlled"], "at equal length", "other"),
            ):
                if found["rate"] is not None:
                    rows.append(
                        Row(name, found["rate"], found["low"], found["high"], color, note=f"{found['rate']:.0%}")
                    )
        if rows:
            alt = f"Win rates against {baseline}: " + ", ".join(f"{row.name} {row.note}" for row in rows)
            plots.append((f"Against {baseline}", interval_plot(rows, alt)))
    return plots


def _short(name: str) -> str:
    return name if len(name) <= 42 else f"{name[:41]}\N{HORIZONTAL ELLIPSIS}"


def length_plots(results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return, for each baseline, a title and a picture of the win rate over the difference in length.

    By the most trusted who compared: people, else a judge, else a reward.
    """
    plots = []
    for baseline in results["kl"]:
        found = [each for each in results["comparisons"] if each["baseline"] == baseline and each["win_rate"]]
        ranked = sorted(found, key=lambda each: (PEOPLE, JUDGE, REWARD).index(each["by"]))
        if ranked and (svg := _length_plot(ranked[0], samples)):
            plots.append((f"{compared_by(ranked[0])}, against {baseline}", svg))
    return plots


def _length_plot(result: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> str | None:
    """Draw the win rate in bins of the length difference with their intervals, and the curve that was fitted."""
    points = sorted(_points(result, samples))
    if len(points) < 2 * _LEAST_IN_A_BIN:
        return None
    bins = [part for part in np.array_split(np.array(points), min(_BINS, len(points) // _LEAST_IN_A_BIN)) if len(part)]
    differences = [difference for difference, _ in points]
    low, high = min(differences[0], 0.0), max(differences[-1], 0.0)
    if low == high:
        return None
    axes = Axes((low, high), (0.0, 1.0))
    ticks = sorted({low, 0.0, high}) if min(-low, high) > 0.12 * (high - low) else [low, high]
    parts = axes.frame([], [tick / 4 for tick in range(5)], "", "", percent=True)
    parts += Axes(axes.across, axes.up).frame(ticks, [], "characters more than the baseline", "")
    parts.append(line(axes.x(low), axes.y(0.5), axes.x(high), axes.y(0.5), "chance"))
    if low < 0 < high:
        parts.append(line(axes.x(0), axes.y(0), axes.x(0), axes.y(1), "zero"))
    controlled = result["length_controlled"]
    if controlled["rate"] is not None:
        level = math.log(controlled["rate"] / (1 - controlled["rate"]))
        spread = float(np.std(differences)) or 1.0
        steps = [low + (high - low) * number / 60 for number in range(61)]
        curve = [1 / (1 + math.exp(-level - controlled["length_weight"] * math.tanh(d / spread))) for d in steps]
        path = "L".join(f"{axes.x(d):.1f},{axes.y(share):.1f}" for d, share in zip(steps, curve, strict=True))
        parts.append(f'<path class="curve model" d="M{path}"/>')
    for part in bins:
        wins = preference_rate(part[:, 1].tolist())
        x = axes.x(fmean(part[:, 0].tolist()))
        parts.append(line(x, axes.y(wins.low), x, axes.y(wins.high), "interval model"))
        parts.append(f'<circle class="dot model" cx="{x:.1f}" cy="{axes.y(wins.rate):.1f}" r="5"/>')
    return picture(parts, f"Win rate by {compared_by(result)} over the difference in length")


def _points(result: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Return (length difference in characters, preference) of each prompt that was compared."""
    found = []
    policy, baseline = next(iter(samples[0]["completions"])), result["baseline"]
    for sample in samples:
        lengths = {name: len(text) for name, text in sample["completions"].items()}
        for each in sample["preferences"]:
            same = all(each[key] == result[key] for key in ("by", "name", "baseline"))
            if same and each["policy"] is not None:
                found.append((float(lengths[policy] - lengths[baseline]), float(each["policy"])))
    return found


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return a prompt and its completions as the page shows them."""
    prompt = sample["prompt"]
    if not isinstance(prompt, str):
        roles = {"user": "", "system": "[system] ", "assistant": "[assistant] "}
        prompt = "\n".join(f"{roles.get(each['role'], '')}{each['content']}" for each in prompt)
    completions = []
    for name, text in sample["completions"].items():
        ending = "" if sample["finished"][name] else " \N{HORIZONTAL ELLIPSIS}"
        rewards = (sample["rewards"] or {}).get(name, {})
        shown = ", ".join(f"{key} {value:.2f}" for key, value in rewards.items() if value is not None)
        completions.append((name, text.strip() + ending, shown))
    return {"prompt": prompt, "completions": completions, "verdicts": list(map(_verdict, sample["preferences"]))}


def _verdict(preference: Mapping[str, Any]) -> str:
    who = compared_by(preference)
    value = preference["policy"]
    if value is None:
        return f"{who}: no answer"
    if value == 0.5:
        return f"{who}: tie with {preference['baseline']}"
    return f"{who}: {'policy' if value > 0.5 else preference['baseline']}"


def _settings(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was asked for, the sampling that was used, and the versions."""
    flags = {name: value for name, value in results["settings"].items() if value not in (None, [], {}, False)}
    models = {f"model: {name}": path for name, path in results["models"].items()}
    return models | flags | dict(results["sampling"]) | dict(results["versions"])
