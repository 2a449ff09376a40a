"""Results of all rounds so far: rounds.json, the plots and the report."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from hf_rlhf.evaluation.metrics import summarize
from hf_rlhf.feedback.agreement import agreement_of, units_of
from hf_rlhf.feedback.rules import FINISHED
from hf_rlhf.feedback.store import ANSWER
from hf_rlhf.records import read_json_lines, write_whole
from hf_rlhf.rounds.arguments import EVALUATION, PREFERENCES, START
from hf_rlhf.rounds.candidates import TEST, TRAIN, round_folder, tasks_of_round
from hf_rlhf.rounds.evaluation import ACCURACIES_FILE, REPLIES_FILE, comparison_tasks, rating_of, wins_over_start
from hf_rlhf.rounds.loop import Loop
from hf_rlhf.rounds.report import write_report

RESULTS_FILE = "rounds.json"


def write_results(loop: Loop, rounds: int) -> dict[str, Any]:
    """Write rounds.json and report.html of the first `rounds` rounds, and return what they say."""
    start = read_json_lines(loop.root / START / REPLIES_FILE)
    accuracies = _accuracies(loop.root, rounds)
    found = [_of_replies(loop, start) | {"round": 0}]
    for number in range(1, rounds + 1):
        found.append(_of_round(loop, number) | {"reward_accuracy": accuracies[number]})
    results = {"headline": headline(found), "rounds": found, "last": _flat(found[-1])}
    write_whole(loop.root / RESULTS_FILE, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    write_report(loop, results)
    return results


def headline(rounds: list[dict[str, Any]]) -> str:
    """Return the result in one sentence."""
    first, last = rounds[0], rounds[-1]
    parts = []
    if last["rating"]:
        parts.append(
            f"the annotator rates the policy {last['rating']['mean']:.2f} ({first['rating']['mean']:.2f} before)"
        )
    elif last["wins"]:
        parts.append(f"the policy is preferred to the start {last['wins']['rate']:.0%} of the time")
    accuracies = [row["reward_accuracy"].get("eval_accuracy") for row in rounds[1:]]
    if accuracies[-1] is not None:
        before = f" ({accuracies[0]:.0%} after round 1)" if len(accuracies) > 1 else ""
        parts.append(f"the reward model agrees with {accuracies[-1]:.0%} of the held-out preferences{before}")
    rest = " and ".join(parts) or "nothing was measured, as there are no held-out preferences"
    return f"After {last['round']} round{'s' if last['round'] > 1 else ''} {rest}."


def _accuracies(root: Path, rounds: int) -> dict[int, dict[str, float]]:
    """Return the accuracy of each round's reward model on the held-out preferences up to the last round: one set."""
    file = round_folder(root, rounds) / EVALUATION / ACCURACIES_FILE
    return {row.pop("round"): row for row in json.loads(file.read_text(encoding="utf-8"))}


def _of_round(loop: Loop, number: int) -> dict[str, Any]:
    folder = round_folder(loop.root, number)
    preferences = {split: read_json_lines(folder / PREFERENCES / f"{split}.jsonl") for split in (TRAIN, TEST)}
    replies = read_json_lines(folder / EVALUATION / REPLIES_FILE)
    tasks = comparison_tasks(loop.args, loop.root, number, loop.form)
    asked = min(loop.args.comparisons, len(replies))
    wins = wins_over_start(loop.store, tasks, number, asked)
    return {
        "round": number,
        "preferences": len(preferences[TRAIN]),
        "held_out_preferences": len(preferences[TEST]),
        "agreement": _agreement(loop, number),
        **_of_replies(loop, replies),
        "wins": None if wins is None else {"rate": wins.rate, "low": wins.low, "high": wins.high, "n": wins.n},
        "kl": _moments([reply["kl"] for reply in replies]),
        "reward": fmean(reply["reward"] for reply in replies),
        "tokens": fmean(reply["tokens"] for reply in replies),
    }


def _of_replies(loop: Loop, replies: list[dict[str, Any]]) -> dict[str, Any]:
    ratings = rating_of(loop.annotators, replies)
    return {
        "rating": None if ratings is None else _moments(ratings),
        "finished": fmean(reply[FINISHED] for reply in replies),
    }


def _moments(numbers: list[float]) -> dict[str, float]:
    found = summarize(numbers)
    return {"mean": found.mean, "low": found.low, "high": found.high}


def _agreement(loop: Loop, number: int) -> dict[str, Any] | None:
    """Return how far annotators agree on the questions of a round; None where no two answered the same."""
    tasks = {task.id: task for task in tasks_of_round(loop.root, number, loop.form)}
    answers = [
        (tasks[event.task], event) for event in loop.store.current() if event.kind == ANSWER and event.task in tasks
    ]
    for units in units_of(answers):
        found = agreement_of(units, seed=loop.args.seed)
        if found["units"]:
            level = next(iter(found["alpha"]))
            return {
                "what": found["what"],
                "tasks": found["tasks"],
                "percent": found["percent"],
                "alpha": found["alpha"][level],
            }
    return None


def _flat(row: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a round by one name each, for the terminal."""
    found = {
        "rating": (row.get("rating") or {}).get("mean"),
        "win_rate": (row.get("wins") or {}).get("rate"),
        "kl": (row.get("kl") or {}).get("mean"),
        "reward_accuracy": (row.get("reward_accuracy") or {}).get("eval_accuracy"),
    }
    return {name: float(value) for name, value in found.items() if value is not None}
