"""The tables of an evaluation: rows of text that the page and the terminal share, made of evaluation.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from hf_rlhf.evaluation.opinions import PEOPLE, REWARD

DASH = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"


class ComparisonRow(NamedTuple):
    """One win rate as text."""

    baseline: str
    by: str  # who compared
    rate: str
    interval: str
    controlled: str  # at equal length
    controlled_interval: str
    counts: str  # wins / ties / losses
    note: str


def compared_by(result: Mapping[str, Any]) -> str:
    """Return who compared, as text."""
    return "people" if result["by"] == PEOPLE else f"{result['by']} {result['name']}"


def comparison_rows(results: Mapping[str, Any]) -> list[ComparisonRow]:
    """Return the rows of the table of win rates."""
    rows = []
    for each in results["comparisons"]:
        wins, controlled = each["win_rate"], each["length_controlled"]
        counts = f"{wins['wins']} / {wins['ties']} / {wins['losses']}" if wins else DASH
        rows.append(
            ComparisonRow(
                each["baseline"],
                compared_by(each),
                *_rate(wins),
                *_rate(controlled),
                counts,
                "; ".join(_remarks(each)),
            )
        )
    return rows


def _rate(found: Mapping[str, Any] | None) -> tuple[str, str]:
    if not found or found["rate"] is None:
        return DASH, ""
    return f"{found['rate']:.0%}", f"{found['low']:.0%} to {found['high']:.0%}"


def _remarks(result: Mapping[str, Any]) -> list[str]:
    """Return what else is known of a comparison: the difference of a reward, the agreement of a judge or of people."""
    said = []
    if result["by"] == REWARD and (gain := result.get("difference")):
        said.append(f"mean difference {signed(gain['mean'])} ({signed(gain['low'])} to {signed(gain['high'])})")
    agreement = result.get("agreement")
    if isinstance(agreement, Mapping):
        said.append(f"{agreement['ties']} of {agreement['pairs']} pairs are ties, or change with the order")
        if (first := agreement["shown_first_share"]) is not None:
            said.append(f"the one shown first is named in {first:.0%} of the answers")
    elif isinstance(agreement, list):
        said.append(f"{result['answers']} answers of {result['annotators']} annotators")
        said += [
            f"annotators agree in {each['percent']['value']:.0%}"
            for each in agreement
            if each["what"] == "side" and each["percent"]["value"] is not None
        ]
    if result["unanswered"]:
        said.append(f"{result['unanswered']} of {result['unanswered'] + result['n']} prompts have no answer")
    return said


def signed(number: float) -> str:
    """Return a number with its sign and three digits."""
    return f"{number:+.3g}".replace("-", _MINUS)


def measure_rows(results: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the rows of the table of measures: a name, and a cell for each model."""
    by = results["self_similarity_by"]
    names = {
        "length (tokens)": ("tokens", "{:.1f}"),
        "length (characters)": ("characters", "{:.0f}"),
        "finished before the limit": ("finished", "{:.0%}"),
        "distinct words": ("distinct_1", "{:.3f}"),
        "distinct word pairs": ("distinct_2", "{:.3f}"),
        f"self-similarity (by {by})": ("self_similarity", "{:.3f}"),
        "repetitive": ("repetitive", "{:.0%}"),
        "refusals": ("refusals", "{:.0%}"),
    }
    models = list(results["models"])
    rows = [
        (name, [_cell(form, results["measures"][model][key]) for model in models])
        for name, (key, form) in names.items()
    ]
    if any("per_token" in each for each in results["kl"].values()):
        kl = {model: each for model, each in results["kl"].items() if "per_token" in each}
        for name, read in (
            ("KL of the policy to it (nats)", lambda each: _with_interval(each["per_completion"])),
            ("the same, nats a token", lambda each: f"{each['per_token']:.4f}"),
        ):
            rows.append((name, [read(kl[model]) if model in kl else DASH for model in models]))
    if results["perplexity"]:
        for name, key, form in (
            ("perplexity of the text", "perplexity", "{:.2f}"),
            ("the same, bits a character", "bits_per_character", "{:.3f}"),
        ):
            rows.append((name, [_cell(form, results["perplexity"][model][key]) for model in models]))
    return rows


def _cell(form: str, value: float | None) -> str:
    return DASH if value is None else form.format(value)


def _with_interval(summary: Mapping[str, float]) -> str:
    return f"{summary['mean']:.2f} ({summary['low']:.2f} to {summary['high']:.2f})".replace("-", _MINUS)


def terminal_tables(results: Mapping[str, Any]) -> list[Any]:
    """Return both tables for a terminal. No cell is read as markup."""
    from rich.table import Table
    from rich.text import Text

    measures = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("", *results["models"]):
        measures.add_column(Text(name), justify="right" if name else "left")
    for name, cells in measure_rows(results):
        measures.add_row(Text(name), *map(Text, cells))
    wins = Table(
        "against", "by", "win rate", "at equal length", "won/tied/lost", box=None, header_style="dim", pad_edge=False
    )
    for row in comparison_rows(results):
        rates = [f"{row.rate} ({row.interval})" if row.interval else row.rate]
        rates += [f"{row.controlled} ({row.controlled_interval})" if row.controlled_interval else row.controlled]
        wins.add_row(*map(Text, (row.baseline, row.by, *rates, row.counts.replace(" ", ""))))
    return [wins, measures] if results["comparisons"] else [measures]
