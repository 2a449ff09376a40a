"""The last step of a round: the policy on held-out prompts, and every reward model on all held-out preferences."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_rlhf.data.prompts import prompt_rows
from hf_rlhf.evaluation.before_after import measure_side
from hf_rlhf.evaluation.metrics import WinRate, preference_rate
from hf_rlhf.evaluation.reward_model import Pairs, reward_accuracy
from hf_rlhf.feedback.annotators import Annotator
from hf_rlhf.feedback.comparisons import order_of_texts, share_that_prefers
from hf_rlhf.feedback.forms import CORRECTION, PAIRWISE, Form
from hf_rlhf.feedback.rules import FINISHED, RuleAnnotator
from hf_rlhf.feedback.store import FeedbackStore
from hf_rlhf.feedback.tasks import Task
from hf_rlhf.models.adapted import load_policy
from hf_rlhf.models.precision import current_device
from hf_rlhf.models.references import named_reference
from hf_rlhf.progress import progress_of
from hf_rlhf.recipes.arguments import ModelArguments
from hf_rlhf.recipes.candidates import sample_to_file
from hf_rlhf.recipes.common import tokenizer_of
from hf_rlhf.records import read_json_lines, write_json_lines, write_whole
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import row_seed
from hf_rlhf.rollout.stops import stop_at_end_of_turn
from hf_rlhf.rounds.arguments import EVALUATION, POLICY, PREFERENCES, PROMPTS, REWARD_MODEL, START, RoundsArguments
from hf_rlhf.rounds.candidates import (
    REFERENCE_COLUMN,
    TEST,
    load_newest,
    load_reward,
    round_folder,
    task_of,
)
from hf_rlhf.types import Trajectory

REPLIES_FILE, ACCURACIES_FILE = "replies.jsonl", "reward_models.json"


def sample_start(args: RoundsArguments, model_args: ModelArguments, root: Path, folder: Path) -> None:
    """Sample the start's completions of the held-out prompts, to which those of every policy are compared."""
    policy, tokenizer = load_newest(model_args, root, 1), tokenizer_of(model_args)
    rows = _rows(root, tokenizer)
    file = folder / REPLIES_FILE
    sample_to_file(
        policy, tokenizer, rows, args.sampling, _seeds(args, rows), file, _reply, "     replies of the start"
    )


def evaluate_round(args: RoundsArguments, model_args: ModelArguments, root: Path, number: int, folder: Path) -> None:
    """Write replies.jsonl, the policy's with reward and KL to the start, and reward_models.json: their accuracies."""
    own = round_folder(root, number)
    kwargs = model_args.on(current_device()).load_kwargs()
    policy: Any = load_policy(str(own / POLICY), adds_adapter=True, **kwargs)
    other = named_reference(policy, model_args.model_name_or_path)
    assert other is None, "the start is the base of the policy, or an adapter on it"
    policy.to(current_device())
    tokenizer = tokenizer_of(model_args)
    rows = _rows(root, tokenizer)
    stop_at_end_of_turn(policy, tokenizer, rows[0], args.sampling)
    with progress_of(len(rows) * args.max_completion_length, "     replies to held-out prompts") as advance:
        side = measure_side(
            policy,
            TransformersEngine(policy, tokenizer, on_tokens=advance),
            rows,
            args.sampling,
            _seeds(args, rows),
            adapter=True,
            judge=lambda trajectory: 0.0,  # who judges is asked through the store
            reward=load_reward(own / REWARD_MODEL, policy),
        )
    replies = [
        _reply(trajectory) | {"reward": reward, "kl": kl, "tokens": len(trajectory.completion.ids)}
        for trajectory, reward, kl in zip(side.trajectories, side.rewards, side.kl, strict=True)
    ]
    accuracies = []
    pairs = held_out_pairs(root, number)
    with progress_of(number, "     reward models on held-out preferences") as advance:
        for each in range(1, number + 1):
            reward = load_reward(round_folder(root, each) / REWARD_MODEL, policy)
            accuracies.append({"round": each, **(reward_accuracy(reward, pairs) if pairs else {})})
            advance(1)
    write_json_lines(folder / REPLIES_FILE, replies)
    write_whole(folder / ACCURACIES_FILE, json.dumps(accuracies, indent=2) + "\n")


def held_out_pairs(root: Path, number: int) -> Pairs | None:
    """Return the held-out preferences up to a round; None where there are none."""
    rows = read_json_lines(round_folder(root, number) / PREFERENCES / f"{TEST}.jsonl")
    return Pairs.from_dataset(Dataset.from_list(rows)) if rows else None


def comparison_tasks(args: RoundsArguments, root: Path, number: int, form: Form) -> list[Task]:
    """Return the questions whether a round's policy or the start replies better; equal replies are not asked about.

    Which of them is completion 0 is a matter of the texts.
    """
    if args.comparisons == 0:
        return []
    asked = form if form.kind == PAIRWISE else Form()
    before = read_json_lines(root / START / REPLIES_FILE)
    after = read_json_lines(round_folder(root, number) / EVALUATION / REPLIES_FILE)
    tasks = []
    for start, policy in list(zip(before, after, strict=True))[: args.comparisons]:
        sides = [("start", start), (f"round_{number}", policy)]
        if start["completion"] != policy["completion"]:
            sides = [sides[place] for place in order_of_texts([reply["completion"] for _, reply in sides])]
            row = {
                "prompt": start["prompt"],
                "completions": [reply["completion"] for _, reply in sides],
                FINISHED: [reply[FINISHED] for _, reply in sides],
                "sources": [name for name, _ in sides],
                "round": number,
                "split": EVALUATION,
                **{name: start[name] for name in (REFERENCE_COLUMN,) if name in start},
            }
            tasks.append(task_of(row, asked))
    return tasks


def wins_over_start(store: FeedbackStore, tasks: Sequence[Task], number: int, asked: int) -> WinRate | None:
    """Return how often the policy of a round is preferred to the start; equal replies and undecided tasks are ties.

    Args:
        store: has the answers.
        tasks: those of `comparison_tasks`.
        number: of the round.
        asked: comparisons in all, with those of equal replies.
    """
    shares = []
    for task in tasks:
        share = share_that_prefers(store, task, task.texts[int(task.sources[0] == "start")])
        if share is not None:
            shares.append(share)
    shares += [0.5] * (asked - len(tasks))
    return preference_rate(shares) if shares else None


def rating_of(annotators: Sequence[Annotator], replies: Sequence[dict[str, Any]]) -> list[float] | None:
    """Return the rating of each reply by the rule that annotators follow, from 0 to 1; None where they follow none."""
    rule = annotators[0] if annotators else None
    if not isinstance(rule, RuleAnnotator):
        return None
    ratings = []
    for reply in replies:
        row = reply | {"completions": [reply["completion"]], FINISHED: [reply[FINISHED]], "source": ""}
        rating = rule.rate(task_of(row, Form(CORRECTION)), 0)
        ratings += [] if rating is None else [rating]
    return ratings or None


def _rows(root: Path, tokenizer: Any) -> list[dict[str, Any]]:
    prompts = read_json_lines(root / PROMPTS / f"{TEST}.jsonl")
    rows = prompt_rows([row["prompt"] for row in prompts], tokenizer)
    return [{**prompt, **row} for prompt, row in zip(prompts, rows, strict=True)]


def _seeds(args: RoundsArguments, rows: Sequence[Any]) -> list[int]:
    """Return the seeds of the replies to held-out prompts: the same for the start and for every policy."""
    return [row_seed(args.seed, "evaluation", place) for place in range(len(rows))]


def _reply(reply: Trajectory) -> dict[str, Any]:
    besides = {name: reply.row[name] for name in (REFERENCE_COLUMN,) if reply.row.get(name) is not None}
    return {"prompt": reply.prompt, "completion": reply.text, FINISHED: reply.completion.stopped, **besides}
