"""The first steps of a round: prompts, candidates of the newest policy, and the questions to ask about them."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hf_rlhf.data.files import read_rows
from hf_rlhf.data.prompts import prompt_rows
from hf_rlhf.data.rows import fingerprint
from hf_rlhf.errors import InputError
from hf_rlhf.feedback.forms import Form
from hf_rlhf.feedback.prompts import feedback_rows
from hf_rlhf.feedback.rules import FINISHED
from hf_rlhf.feedback.selection import RANDOM, Question, choose_questions, possible_questions
from hf_rlhf.feedback.tasks import Task
from hf_rlhf.models.adapted import load_policy
from hf_rlhf.models.load import read_config
from hf_rlhf.models.precision import current_device
from hf_rlhf.progress import progress_of
from hf_rlhf.recipes.arguments import ModelArguments
from hf_rlhf.recipes.candidates import sample_to_file
from hf_rlhf.recipes.common import base_and_adapter, tokenizer_of
from hf_rlhf.records import read_json_lines, write_json_lines
from hf_rlhf.rewards.learned import LearnedReward
from hf_rlhf.rewards.sources import resolve_rewards
from hf_rlhf.rollout.sampling import row_seed
from hf_rlhf.rounds.arguments import CANDIDATES, POLICY, PROMPTS, REWARD_MODEL, SIMILARITY, RoundsArguments
from hf_rlhf.types import Message, Model, Trajectory

TRAIN, TEST = "train", "test"
REFERENCE_COLUMN = "reference"
QUESTIONS_FILE = "questions.jsonl"


def round_folder(root: Path, number: int) -> Path:
    """Return the folder of a round; they count from 1."""
    return root / f"round_{number}"


def split_prompts(args: RoundsArguments, model: ModelArguments, folder: Path) -> None:
    """Write the prompts to train on, and those that are held out, to train.jsonl and test.jsonl in `folder`.

    Held out are those of the smallest digests, so that the others do not decide about one.

    Raises `InputError` for prompts that cannot be used, and for too few of them.
    """
    assert args.dataset_name is not None
    rows = read_rows(
        args.dataset_name,
        split=args.dataset_train_split,
        config_name=args.dataset_config,
        skip_bad_rows=args.skip_bad_rows,
    )
    columns = [REFERENCE_COLUMN]
    prompts = feedback_rows(rows, args.system_prompt, columns)[: args.max_prompts]
    if args.annotator == SIMILARITY and not any(row.get(REFERENCE_COLUMN) for row in prompts):
        raise InputError(
            f"annotator={SIMILARITY} is invalid: {rows.source} has no column {REFERENCE_COLUMN} with texts to compare"
            " to. Add it, or choose another annotator."
        )
    left = len(prompts) - args.held_out_prompts
    if left < args.rollout_batch_size:
        raise InputError(
            f"held_out_prompts={args.held_out_prompts} is invalid: of the {len(prompts)} prompts of {rows.source} it"
            f" leaves {max(left, 0)} to train on, and rollout_batch_size={args.rollout_batch_size} needs as many. Lower"
            " one of them, or give more prompts."
        )
    by_digest = sorted(range(len(prompts)), key=lambda number: fingerprint(args.seed, prompts[number]["prompt"]))
    held_out = set(by_digest[: args.held_out_prompts])
    _require_room(args, model, longest_prompt(prompts, model))
    for split, wanted in ((TRAIN, False), (TEST, True)):
        write_json_lines(folder / f"{split}.jsonl", [r for n, r in enumerate(prompts) if (n in held_out) == wanted])


def longest_prompt(prompts: Sequence[dict[str, Any]], model: ModelArguments) -> int:
    """Return the tokens of the longest of some prompts."""
    return max(len(row["prompt_ids"]) for row in prompt_rows([row["prompt"] for row in prompts], tokenizer_of(model)))


def _require_room(args: RoundsArguments, model: ModelArguments, longest: int) -> None:
    """Raise `InputError` for prompts that leave no room for a completion among the model's positions."""
    config = read_config(base_and_adapter(model)[0])
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and longest + args.max_completion_length > positions:
        raise InputError(
            f"max_completion_length={args.max_completion_length} is invalid: with the longest prompt of {longest}"
            f" tokens it is more than the {positions} positions of the model. Lower it, or leave long prompts out."
        )


def load_newest(model_args: ModelArguments, root: Path, number: int) -> Model:
    """Load the policy that round `number` begins with: that of the round before, or the start of all."""
    name = str(round_folder(root, number - 1) / POLICY) if number > 1 else model_args.model_name_or_path
    kwargs = model_args.on(current_device()).load_kwargs()
    return load_policy(name, adds_adapter=True, **kwargs).to(current_device()).eval()


def make_candidates(args: RoundsArguments, model_args: ModelArguments, root: Path, number: int, folder: Path) -> None:
    """Sample candidates by the newest policy, and choose the questions of the round.

    Writes train.jsonl and test.jsonl (a completion a row), and questions.jsonl. What `folder` holds already is kept.
    """
    policy, tokenizer = load_newest(model_args, root, number), tokenizer_of(model_args)
    for split in (TRAIN, TEST):
        prompts = _prompts_of_round(args, root, number, split)
        rows = prompt_rows([row["prompt"] for row in prompts], tokenizer)
        rows = [
            {**row, **prompt, "number": place}
            for place, (row, prompt) in enumerate(zip(rows, prompts, strict=True))
            for _ in range(args.candidates_per_prompt)
        ]
        seeds = [row_seed(args.seed, "candidates", number, split, place) for place in range(len(rows))]
        file = folder / f"{split}.jsonl"
        sample_to_file(policy, tokenizer, rows, args.sampling, seeds, file, _candidate, f"     {split} candidates")
    questions = _questions(args, policy, root, number, folder)
    write_json_lines(folder / QUESTIONS_FILE, questions)


def _prompts_of_round(args: RoundsArguments, root: Path, number: int, split: str) -> list[dict[str, Any]]:
    """Return the prompts that get candidates: each round continues in a list that is shuffled once."""
    prompts = read_json_lines(root / PROMPTS / f"{split}.jsonl")
    count = args.prompts_per_round
    if split == TEST or count is None or count >= len(prompts):
        return prompts
    order = sorted(range(len(prompts)), key=lambda place: fingerprint(args.seed, "order", prompts[place]["prompt"]))
    start = (number - 1) * count
    return [prompts[order[place % len(prompts)]] for place in range(start, start + count)]


def _candidate(reply: Trajectory) -> dict[str, Any]:
    besides = {name: reply.row[name] for name in (REFERENCE_COLUMN,) if reply.row.get(name) is not None}
    row = {"number": reply.row["number"], "prompt": reply.prompt, "completion": reply.text}
    return row | {FINISHED: reply.completion.stopped} | besides


def _questions(args: RoundsArguments, policy: Model, root: Path, number: int, folder: Path) -> list[dict[str, Any]]:
    """Return the questions of both splits as rows of questions.jsonl; `task_of` reads them."""
    form, rows = args.read_form(), []
    for split, count in ((TRAIN, args.questions), (TEST, args.held_out_questions)):
        candidates = read_json_lines(folder / f"{split}.jsonl")
        groups = [list(group) for _, group in itertools.groupby(candidates, lambda row: row["number"])]
        texts = [[row["completion"] for row in group] for group in groups]
        possible = possible_questions(texts, form)
        if not possible:
            raise InputError(
                f"candidates_per_prompt={args.candidates_per_prompt} is invalid: all completions of a prompt are equal,"
                f" so nothing of round {number} can be compared. Raise it, or the temperature."
            )
        how = args.choose if split == TRAIN and number > 1 else RANDOM
        rewards = None if how == RANDOM else _rewards(policy, root, number, candidates)
        seed = row_seed(args.seed, "questions", number, split)
        chosen = choose_questions(possible, count, how, seed=seed, rewards=rewards)
        rows += [_question_row(each, candidates, split, number) for each in chosen]
    return rows


def _question_row(question: Question, candidates: Sequence[dict[str, Any]], split: str, number: int) -> dict[str, Any]:
    shown = [candidates[each] for each in question.candidates]
    besides = {name: shown[0][name] for name in (REFERENCE_COLUMN,) if name in shown[0]}
    return {
        "prompt": shown[0]["prompt"],
        "completions": [row["completion"] for row in shown],
        FINISHED: [row[FINISHED] for row in shown],
        "source": f"round_{number - 1}" if number > 1 else "start",
        "round": number,
        "split": split,
        **besides,
    }


def task_of(row: dict[str, Any], form: Form) -> Task:
    """Return the task of a row of questions.jsonl, or of another with the same keys."""
    sources = row.get("sources") or [row["source"]] * len(row["completions"])
    columns = {name: row[name] for name in ("round", "split", FINISHED, REFERENCE_COLUMN) if name in row}
    completions = tuple([Message(role="assistant", content=text)] for text in row["completions"])
    return Task(form, row["prompt"], completions, tuple(sources), columns=columns)


def tasks_of_round(root: Path, number: int, form: Form) -> list[Task]:
    """Return the tasks of a round whose candidates are made."""
    rows = read_json_lines(round_folder(root, number) / CANDIDATES / QUESTIONS_FILE)
    return [task_of(row, form) for row in rows]


def _rewards(policy: Model, root: Path, number: int, candidates: Sequence[dict[str, Any]]) -> torch.Tensor:
    """Return the rewards `(candidates, members)` by the reward model of the round before."""
    reward = load_reward(round_folder(root, number - 1) / REWARD_MODEL, policy)
    with progress_of(1, "     rewards of the candidates"):
        return rewards_of(reward, candidates)


def load_reward(folder: Path, policy: Model | None) -> LearnedReward:
    """Load a reward model, or an ensemble, on the base of `policy` where it can share that."""
    reward = resolve_rewards(str(folder), None, policy=policy, device=current_device(), weights=None).functions[0]
    assert isinstance(reward, LearnedReward)
    return reward


def rewards_of(reward: LearnedReward, rows: Sequence[dict[str, Any]]) -> torch.Tensor:
    """Return the rewards `(rows, members)` of rows with `prompt` and `completion`."""
    completions = [[{"role": "assistant", "content": row["completion"]}] for row in rows]
    found = reward.rewards([row["prompt"] for row in rows], completions, {})
    return found if found.ndim == 2 else found[:, None]
