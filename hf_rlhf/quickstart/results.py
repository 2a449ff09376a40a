"""Results that the quickstart shows at its end: table, examples, report, results.json and the policy's model card."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_rlhf.evaluation.before_after import Comparison
from hf_rlhf.evaluation.metrics import BeforeAfter
from hf_rlhf.evaluation.report import ReportFigure, SamplePair, write_report
from hf_rlhf.hub.model_card import policy_card
from hf_rlhf.models.load import EMBEDDED_MODEL, public_name
from hf_rlhf.quickstart.person import ME
from hf_rlhf.records import iteration_rows

RESULTS_FILE, REPORT_FILE, CURVES_FILE = "results.json", "report.html", "curves.png"


def headline(comparison: Comparison, judge: str = "the annotator") -> str:
    """Return the result in one sentence; `judge` says who judged."""
    wins = comparison.wins
    return (
        f"On {wins.n} messages it never saw, {judge} prefers the trained model's reply {wins.rate:.0%} of the"
        f" time (95% interval {wins.low:.0%} to {wins.high:.0%}; {wins.wins} wins, {wins.ties} ties that count half,"
        f" {wins.losses} losses)."
    )


def table(rows: list[BeforeAfter]):
    """Return the results as a table for the terminal."""
    from rich.table import Table

    table = Table("", "before", "after", "change", box=None, header_style="dim", pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(row.metric, *row.formatted())
    return table


def examples(comparison: Comparison, count: int = 3) -> str:
    """Return the first replies, before and after, for the terminal."""
    from rich.markup import escape

    lines = []
    for sample in _samples(comparison)[:count]:
        lines += ["", f"[dim]message[/dim]  {escape(sample.prompt)}"]
        lines += [f"[dim]before[/dim]   {escape(sample.before)}", f"[dim]after[/dim]    {escape(sample.after)}"]
    return "\n".join([*lines, ""])


def _samples(comparison: Comparison) -> list[SamplePair]:
    """Return every held-out message in the order of the file, without any selection."""
    before, after = comparison.before, comparison.after
    return [
        SamplePair(b.row["text"], _as_shown(b), _as_shown(a), rating_b, rating_a)
        for b, a, rating_b, rating_a in zip(
            before.trajectories, after.trajectories, before.judgements, after.judgements, strict=True
        )
    ]


def _as_shown(trajectory) -> str:
    return trajectory.text.strip() + ("" if trajectory.completion.stopped else " …")


def write_results(
    root: Path,
    comparison: Comparison,
    rows: list[BeforeAfter],
    title: str,
    *,
    policy: Path,
    reward_model: Path,
    settings: dict[str, Any],
    system_message: str,
) -> None:
    """Write results.json, samples.jsonl, the figures and report.html to `root`, and the policy's model card.

    Args:
        root: the quickstart's folder.
        comparison: replies before and after.
        rows: the table of results.
        title: the result in one sentence.
        policy, reward_model: their folders.
        settings: of the run.
        system_message: what stood before each message.
    """
    person = settings["annotator"] == ME
    samples = _samples(comparison)
    _write_numbers(root, comparison, rows, samples)
    figures = _draw_figures(root, comparison, policy, "reward model's rating" if person else "annotator rating")
    load_code = _LOAD_CODE.format(folder=policy, system=system_message)
    write_report(
        root / REPORT_FILE,
        title="A language model learns what you prefer"
        if person
        else "A language model learns to be brief and cheerful",
        headline=title,
        summary_rows=rows,
        figures=figures,
        samples=samples,
        settings=settings,
        load_code=load_code,
        notes=_notes(reward_model, settings, system_message),
    )
    base = settings["model_name_or_path"]
    card = policy_card(
        model_id=str(policy),
        base_model=public_name(base),
        license="apache-2.0" if base == EMBEDDED_MODEL else None,
        description=_OF_A_PERSON if person else _OF_A_PROGRAM,
        headline=title,
        results=rows,
        settings=settings,
        samples=samples[:5],
        curve_image=CURVES_FILE,
        reward_model=str(reward_model),
        usage=load_code,
        demonstration=True,
        simulated_annotator=not person,
    )
    (policy / "README.md").write_text(card, encoding="utf-8")


def _draw_figures(root: Path, comparison: Comparison, policy: Path, rating: str) -> list[ReportFigure]:
    from hf_rlhf.evaluation.plots import plot_rating_histogram, plot_training

    curves = plot_training(iteration_rows(policy), policy / CURVES_FILE)
    ratings = plot_rating_histogram(
        comparison.before.judgements, comparison.after.judgements, root / "ratings.png", label=rating
    )
    return [
        ReportFigure(curves, "Training: reward by the reward model, KL to the start, critic and lengths."),
        ReportFigure(ratings, f"{rating.capitalize()} of replies to held-out messages, before and after."),
    ]


def _write_numbers(root: Path, comparison: Comparison, rows: list[BeforeAfter], samples: list[SamplePair]) -> None:
    numbers = {row.metric: {"before": row.before, "after": row.after} for row in rows}
    results = {"win_rate": asdict(comparison.wins), **numbers}
    (root / RESULTS_FILE).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (root / "samples.jsonl").write_text(
        "".join(json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples), encoding="utf-8"
    )


def _notes(reward_model: Path, settings: dict[str, Any], system_message: str) -> list[str]:
    """Return the notes that a reader needs to judge the result."""
    accuracy = json.loads((reward_model / "evaluation.json").read_text(encoding="utf-8"))
    return [
        f"Both models got the same system message, {system_message!r}, and the same random numbers. Part of the gain"
        f" is that replies now end within {settings['max_completion_length']} tokens.",
        f"The reward model agrees with {accuracy['eval_accuracy']:.0%} of {accuracy['eval_rows']:.0f} held-out"
        f" preferences (95% interval {accuracy['eval_accuracy_low']:.0%} to {accuracy['eval_accuracy_high']:.0%}).",
        *(_NOTES_OF_A_PERSON if settings["annotator"] == ME else _NOTES_OF_A_PROGRAM),
    ]


_NOTES_OF_A_PROGRAM = (
    "The annotator is a program that counts warm words in short, finished, non-repeating replies; it knows nothing"
    " of truth, and neither does what was learned from it.",
    "PPO trained against the reward model, not against the annotator: where the reward rises and the annotator's"
    " rating does not, the policy exploited the reward model.",
)
_NOTES_OF_A_PERSON = (
    "The judge of this comparison is the reward model that was trained on your judgments, and that PPO trained against:"
    " a higher rating does not prove that you like the replies better. To judge them blind: hf-rlhf label"
    " --dataset_name evaluation/pairs.jsonl --store again.db, in the folder of this page.",
)
_OF_A_PROGRAM = "A small language model that learned, from simulated feedback alone, to reply briefly and cheerfully."
_OF_A_PERSON = "A small language model that learned from the judgments of one person which replies to prefer."


_LOAD_CODE = """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{folder}")  # the adapter, on the base it was trained on
tokenizer = AutoTokenizer.from_pretrained("{folder}")
prompt = [{{"role": "system", "content": "{system}"}}, {{"role": "user", "content": "I baked bread."}}]
inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=40)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""
