"""Preferences between completions in an evaluation: by rewards, a judge, and people on the page of `hf-rlhf label`."""

import hashlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_rlhf.evaluation.opinions import JUDGE, PEOPLE, Opinions, opinions_of_rewards
from hf_rlhf.feedback.agreement import report_of
from hf_rlhf.feedback.comparisons import ComparedText, comparison_task, share_that_prefers
from hf_rlhf.feedback.forms import Form
from hf_rlhf.feedback.store import FeedbackStore
from hf_rlhf.judges.base import Judge
from hf_rlhf.judges.comparison import Comparison, agreement, corrected_for_position
from hf_rlhf.judges.endpoint import EndpointJudge
from hf_rlhf.judges.local import ModelJudge
from hf_rlhf.models.adapter_files import adapter_folder
from hf_rlhf.models.load import load_tokenizer
from hf_rlhf.progress import progress_of, say
from hf_rlhf.recipes.evaluate_arguments import EvaluateArguments
from hf_rlhf.recipes.evaluate_models import POLICY_NAME
from hf_rlhf.records import append_json_lines, keep_whole_parts, read_json_lines
from hf_rlhf.rewards.contract import Rewards
from hf_rlhf.types import Reward, Trajectory

STORE_FILE, JUDGE_FOLDER = "feedback.db", "judge"
TOTAL = "total"
_PART = 16
"""Pairs that a judge is asked about, and whose answers are written, together."""


# --- rewards ------------------------------------------------------------------------------------------------------


def reward_completions(
    rewards: Rewards, written: Mapping[str, Sequence[Trajectory]], batch_size: int
) -> dict[str, list[Reward]]:
    """Return the rewards of the completions of each model, by the model's name."""
    found: dict[str, list[Reward]] = {}
    with progress_of(sum(map(len, written.values())), "     rewards") as advance:
        for name, trajectories in written.items():
            found[name] = []
            for start in range(0, len(trajectories), batch_size):
                part = trajectories[start : start + batch_size]
                found[name] += rewards.compute(part).rewards
                advance(len(part))
    return found


def opinions_by_rewards(by_model: Mapping[str, Sequence[Reward]], baseline: str) -> list[Opinions]:
    """Return the preferences of each reward and, of several, of their weighted sum between policy and baseline."""
    policy, other = by_model[POLICY_NAME], by_model[baseline]
    names = list(policy[0].parts)
    found = [
        opinions_of_rewards(name, baseline, [r.parts[name] for r in policy], [r.parts[name] for r in other])
        for name in names
    ]
    if len(names) > 1:
        found.insert(0, opinions_of_rewards(TOTAL, baseline, [r.total for r in policy], [r.total for r in other]))
    return found


# --- a judge ------------------------------------------------------------------------------------------------------


def require_judge(args: EvaluateArguments, folder: Path) -> None:
    """Raise `InputError` for a judge that cannot be loaded, and `EndpointError` where its server does not answer.

    A server is not asked where `folder` may have all answers of an earlier start.
    """
    if args.judge_model is None:
        return
    if args.judge_url is None:
        load_tokenizer(adapter_folder(args.judge_model))
        return
    judge = load_judge(args)
    if isinstance(judge, EndpointJudge) and not (folder / JUDGE_FOLDER).is_dir():
        judge.chat.endpoint.require_reachable()


def load_judge(args: EvaluateArguments) -> Judge:
    """Load the judge that the flags name, or reach it by its server."""
    assert args.judge_model is not None
    if args.judge_url is None:
        judge = ModelJudge.load(args.judge_model, dtype=args.dtype)
        if args.use_cpu:
            judge.model.to("cpu")
        return judge
    connection = {"timeout": args.timeout, "retries": args.retries, "concurrency": args.concurrency, "request": args.request}  # fmt: skip
    return EndpointJudge(
        args.judge_model,
        args.judge_url,
        max_tokens=args.judge_max_tokens,
        api_key_env=args.judge_api_key_env,
        **connection,
    )


def opinions_by_judge(
    args: EvaluateArguments, folder: Path, judge: Judge, written: Mapping[str, Sequence[Trajectory]], baseline: str
) -> Opinions:
    """Ask a judge about each pair in both orders, and return its preferences.

    Equal completions are a tie, about which it is not asked. A pair without a readable answer in both orders has no
    preference; the next start asks it again. Answers are kept in `judge/`.
    """
    policy, other = written[POLICY_NAME], written[baseline]
    file = folder / JUDGE_FOLDER / f"{_digest(args, judge, policy, other)}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    pairs = [number for number, (a, b) in enumerate(zip(policy, other, strict=True)) if a.text != b.text]
    keep_whole_parts(file, 1, sys.maxsize)  # a kill may have torn the last line
    known = {number: found for number, found in _answers(file).items() if found.probability is not None}
    asked = [number for number in pairs if number not in known]
    judge.counts.clear()
    with progress_of(2 * len(asked), f"     {judge.name} compares with {baseline}") as advance:
        for start in range(0, len(asked), _PART):
            part = asked[start : start + _PART]
            judge.keep_errors = args.max_failed_requests - judge.counts["failed"]
            texts = [[each[number].text for number in part] for each in (policy, other)]
            found = judge.compare([policy[number].prompt for number in part], *texts, on_done=advance)
            rows = [
                {"pair": number, "shown_first": each.shown_first, "shown_second": each.shown_second}
                for number, each in zip(part, found, strict=True)
            ]
            append_json_lines(file, rows)
    answers = _answers(file)
    found = [answers[number] for number in pairs]
    found = corrected_for_position(found) if args.calibrate else found
    preferences: list[float | None] = [0.5] * len(policy)
    for number, each in zip(pairs, found, strict=True):
        preferences[number] = each.preference
    details = {"equal_completions": len(policy) - len(pairs), "agreement": agreement(found).row()}
    return Opinions(JUDGE, judge.name, baseline, preferences, details)


def _answers(file: Path) -> dict[int, Comparison]:
    """Return the last answers of a file, by the number of the pair."""
    rows = read_json_lines(file) if file.is_file() else []
    return {row["pair"]: Comparison(row["shown_first"], row["shown_second"]) for row in rows}


def _digest(args: EvaluateArguments, judge: Judge, policy: Sequence[Trajectory], other: Sequence[Trajectory]) -> str:
    """Return a name made of all that the answers depend on; a server may move."""
    texts = [[each.text for each in side] for side in (policy, other)]
    asked = (
        judge.cache_key if args.judge_url is None else [judge.name, judge.question, args.request, args.judge_max_tokens]
    )
    content = json.dumps([asked, [each.prompt for each in policy], texts])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


# --- people -------------------------------------------------------------------------------------------------------


def opinions_by_people(
    folder: Path, written: Mapping[str, Sequence[Trajectory]], baselines: Sequence[str]
) -> list[Opinions]:
    """Put the pairs into feedback.db, and return the preferences that its answers have by now.

    Equal completions are a tie, about which people are not asked; they count once all others are answered. The
    share of several annotators counts as won above one half. `details` has their agreement over the whole store.
    """
    found, left = [], 0
    with FeedbackStore(folder / STORE_FILE) as store:
        tasks = {name: _tasks(written[POLICY_NAME], written[name], name) for name in baselines}
        store.add_tasks(task for each in tasks.values() for task in each if task is not None)
        report = report_of(store)
        for name, of_baseline in tasks.items():
            texts = [each.text for each in written[POLICY_NAME]]
            preferences: list[float | None] = [
                0.5 if task is None else share_that_prefers(store, task, text)
                for task, text in zip(of_baseline, texts, strict=True)
            ]
            equal, waiting = of_baseline.count(None), preferences.count(None)
            left += waiting
            if waiting:  # equal completions would outnumber those that were compared
                preferences = [
                    None if task is None else each for task, each in zip(of_baseline, preferences, strict=True)
                ]
            details = {
                "equal_completions": 0 if waiting else equal,
                "answers": report["answers"],
                "annotators": len(report["annotators"]),
                "agreement": report["agreement"],
            }
            found.append(Opinions(PEOPLE, PEOPLE, name, preferences, details))
    if left:
        say(f"{left} comparisons wait for answers. Answer them with")
        say(f"  hf-rlhf label --store {shlex.quote(str(folder / STORE_FILE))}")
        say("and then run the same command again.")
    return found


def _tasks(policy: Sequence[Trajectory], other: Sequence[Trajectory], baseline: str) -> list[Any]:
    """Return the task of each pair; None for equal completions."""
    return [
        None
        if a.text == b.text
        else comparison_task(a.prompt, [ComparedText(POLICY_NAME, a.text), ComparedText(baseline, b.text)], Form())
        for a, b in zip(policy, other, strict=True)
    ]
