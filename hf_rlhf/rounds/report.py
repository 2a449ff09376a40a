"""The report on rounds: one page without scripts or links, with a table, plots and replies of every policy."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_rlhf.evaluation.page import render_page
from hf_rlhf.evaluation.svg import SVG_STYLE
from hf_rlhf.feedback.rules import FINISHED
from hf_rlhf.records import read_json_lines, write_whole
from hf_rlhf.rounds.arguments import EVALUATION, START
from hf_rlhf.rounds.candidates import round_folder
from hf_rlhf.rounds.evaluation import REPLIES_FILE, rating_of
from hf_rlhf.rounds.loop import Loop
from hf_rlhf.rounds.plots import plot_rounds
from hf_rlhf.rounds.report_template import STYLE, TEMPLATE

REPORT_FILE = "report.html"
_SHOWN_PROMPTS = 12


def write_report(loop: Loop, results: dict[str, Any]) -> Path:
    """Write report.html of `write_results`. All values are escaped; none is read as HTML or as a template."""
    rounds = results["rounds"]
    page = render_page(
        TEMPLATE,
        title="Rounds of feedback",
        style=SVG_STYLE + STYLE,
        headline=results["headline"],
        rows=[_table_row(row) for row in rounds],
        plots=plot_rounds(rounds, loop.form.kind),
        samples=_samples(loop, rounds),
        settings=_settings(loop),
        notes=_notes(loop, rounds),
    )
    return write_whole(loop.root / REPORT_FILE, page)


def _table_row(row: dict[str, Any]) -> list[Any]:
    """Return the name of a round and its cells, (value, interval) each; a dash is what was not measured."""
    accuracy, wins, rating, kl = (row.get(name) or {} for name in ("reward_accuracy", "wins", "rating", "kl"))
    agreement = (row.get("agreement") or {}).get("percent") or {}
    return [
        "start" if row["round"] == 0 else str(row["round"]),
        _cell("{:d}", row.get("preferences")),
        _cell("{:.0%}", *(accuracy.get(name) for name in ("eval_accuracy", "eval_accuracy_low", "eval_accuracy_high"))),
        _cell("{:.0%}", *(agreement.get(name) for name in ("value", "low", "high"))),
        _cell("{:.2f}", *(rating.get(name) for name in ("mean", "low", "high"))),
        _cell("{:.0%}", *(wins.get(name) for name in ("rate", "low", "high"))),
        _cell("{:.1f}", *(kl.get(name) for name in ("mean", "low", "high"))),
        _cell("{:.0%}", row["finished"]),
    ]


def _cell(form: str, value: Any, low: float | None = None, high: float | None = None) -> tuple[str, str]:
    interval = "" if low is None or high is None else f"{form.format(low)} to {form.format(high)}"
    return ("\N{EN DASH}", "") if value is None else (form.format(value), interval)


def _samples(loop: Loop, rounds: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the replies of start and policies to the first held-out prompts, in the order of the file."""
    sides = [("start", loop.root / START / REPLIES_FILE)]
    sides += [
        (f"round {row['round']}", round_folder(loop.root, row["round"]) / EVALUATION / REPLIES_FILE)
        for row in rounds[1:]
    ]
    read = [(name, read_json_lines(file)[:_SHOWN_PROMPTS]) for name, file in sides]
    samples = []
    for place, reply in enumerate(read[0][1]):
        replies = []
        for name, found in read:
            rating = rating_of(loop.annotators, [found[place]])
            text = found[place]["completion"].strip() + ("" if found[place][FINISHED] else " …")
            replies.append((name, text, None if rating is None else rating[0]))
        samples.append({"prompt": reply["prompt"][-1]["content"], "replies": replies})
    return samples


def _settings(loop: Loop) -> dict[str, Any]:
    model = asdict(loop.model)
    shown = ("model_name_or_path", "lora_r", "lora_alpha", "lora_target_modules", "lora_layers")
    flags = {
        name: value for name, value in asdict(loop.args).items() if value not in (None, {}) and name != "output_dir"
    }
    return {name: model[name] for name in shown} | flags


def _notes(loop: Loop, rounds: Sequence[dict[str, Any]]) -> list[str]:
    """Return what a reader needs to judge the numbers."""
    last = rounds[-1]
    prompts = len(read_json_lines(loop.root / START / REPLIES_FILE))
    notes = [
        f"The accuracy of every reward model is that on the same {last['held_out_preferences']} preferences: those"
        f" about held-out prompts, of all {last['round']} rounds. Later reward models are trained on more"
        " preferences, and on completions of later policies.",
        f"Policies are compared on {prompts} held-out prompts, with the same random numbers. KL is that to the start,"
        " in nats a reply. The intervals are of 95%.",
        "PPO trains against the reward model, not against the annotator: where the reward rises and the annotator's"
        " judgment does not, the policy exploits the reward model.",
    ]
    if loop.annotators and last["rating"]:
        notes.append(
            "The annotator is a program, and its rating is shown without the noise of its choices. It knows nothing of"
            " truth, and neither does what was learned from it."
        )
    if last["agreement"] is None:
        notes.append(
            "Agreement is not measured: no two annotators answered the same question. Set overlap to 2 or more."
        )
    return notes
