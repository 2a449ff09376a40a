"""The steps of a round that train: preferences from the answers, a reward model of them, and PPO against that."""

import copy
import json
from pathlib import Path
from typing import Any

from hf_rlhf.checkpoint.folders import checkpoints, remove
from hf_rlhf.checkpoint.resume import AUTO
from hf_rlhf.data.rows import fingerprint
from hf_rlhf.errors import InputError
from hf_rlhf.feedback.conversion.converted import convert
from hf_rlhf.feedback.store import FeedbackStore
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.recipes.arguments import ModelArguments, PPOArguments, RewardArguments, RewardTrainingArguments
from hf_rlhf.recipes.ppo import train_ppo
from hf_rlhf.recipes.reward import train_reward_model
from hf_rlhf.recipes.stages import STAGE_FILE
from hf_rlhf.records import read_json_lines, write_json_lines, write_whole
from hf_rlhf.rewards.ensemble import ENSEMBLE_FILE
from hf_rlhf.rounds.arguments import POLICY, PREFERENCES, PROMPTS, REWARD_MODEL, TO_START, RoundsArguments
from hf_rlhf.rounds.candidates import TEST, TRAIN, longest_prompt, round_folder

DEMONSTRATIONS_FILE, CONVERSION_FILE = "demonstrations.jsonl", "conversion.json"


def write_preferences(args: RoundsArguments, store: FeedbackStore, root: Path, number: int, folder: Path) -> None:
    """Convert all answers so far: preferences to train.jsonl and, of held-out prompts, to test.jsonl.

    Corrections to prompts of training are in demonstrations.jsonl besides, for `hf-rlhf sft`.

    Raises `InputError` for fewer preferences than an update of the reward model takes.
    """
    converted = convert(store)
    held_out = {fingerprint(row["prompt"]) for row in read_json_lines(root / PROMPTS / f"{TEST}.jsonl")}

    def of(rows: list[dict[str, Any]], wanted: bool) -> list[dict[str, Any]]:
        return [row for row in rows if (fingerprint(row["prompt"]) in held_out) == wanted]

    train = of(converted.preferences, False)
    if len(train) < args.reward_batch_size:
        omitted = ", ".join(
            f"{count} {why}" for why, count in converted.report["omitted"].get("preferences", {}).items()
        )
        raise InputError(
            f"reward_batch_size={args.reward_batch_size} is invalid: the answers up to round {number} give"
            f" {len(train)} preferences to train on (no preference: {omitted or 'none'}). Lower it, or answer further"
            f" questions in {store.file}."
        )
    for split, wanted in ((TRAIN, False), (TEST, True)):
        write_json_lines(folder / f"{split}.jsonl", of(converted.preferences, wanted))
    write_json_lines(folder / DEMONSTRATIONS_FILE, of(converted.demonstrations, False))
    write_whole(folder / CONVERSION_FILE, json.dumps(converted.report, indent=2, ensure_ascii=False) + "\n")


def train_reward(args: RoundsArguments, model: ModelArguments, root: Path, number: int, folder: Path) -> None:
    """Train the reward model of a round on all preferences so far, from the start of all, in `folder`."""
    _clear_what_cannot_resume(folder)
    preferences = round_folder(root, number) / PREFERENCES
    held_out = preferences / f"{TEST}.jsonl"
    script = RewardArguments(
        dataset_name=str(preferences / f"{TRAIN}.jsonl"),
        eval_dataset_name=str(held_out) if read_json_lines(held_out) else None,
        num_reward_models=args.num_reward_models,
        save_merged=False,
        resume=AUTO,
    )
    train_reward_model(script, reward_settings(args, number, folder), model)


def reward_settings(args: RoundsArguments, number: int, folder: Path) -> RewardTrainingArguments:
    """Return the settings of a round's reward model. Raises `InputError`."""
    options: Any = args.reward_options
    settings: dict[str, Any] = {
        "per_device_train_batch_size": args.reward_batch_size,
        "learning_rate": args.reward_learning_rate,
        "num_train_epochs": args.reward_epochs,
        "warmup_steps": 5,
        "center_rewards_coefficient": 0.01,
        "logging_steps": 5,
        "save_strategy": "steps",
        "save_steps": 10,
        "save_total_limit": 2,
        "report_to": "none",
        **options,
    }
    return RewardTrainingArguments(output_dir=str(folder), seed=_seed(args, number), **settings)


def train_policy(args: RoundsArguments, model: ModelArguments, root: Path, number: int, folder: Path) -> None:
    """Train the policy of a round by PPO, from that of the round before, in `folder`."""
    _clear_what_cannot_resume(folder)
    start = copy.copy(model)
    if number > 1:
        start.model_name_or_path = str(round_folder(root, number - 1) / POLICY)
    script = PPOArguments(
        dataset_name=str(root / PROMPTS / f"{TRAIN}.jsonl"),
        reward_model_path=str(round_folder(root, number) / REWARD_MODEL),
        ref_model_path=model.model_name_or_path if number > 1 and args.kl_to == TO_START else None,
        resume=AUTO,
    )
    longest = longest_prompt(read_json_lines(root / PROMPTS / f"{TRAIN}.jsonl"), model)
    train_ppo(script, ppo_settings(args, number, folder, longest), start)


def ppo_settings(args: RoundsArguments, number: int, folder: Path, longest: int = 512) -> PPOConfig:
    """Return the settings of a round's PPO on prompts of up to `longest` tokens. Raises `InputError`."""
    options: Any = args.ppo_options
    settings: dict[str, Any] = {
        "per_device_train_batch_size": args.rollout_batch_size // 2,
        "num_mini_batches": 2,
        "num_ppo_epochs": args.num_ppo_epochs,
        "max_steps": args.ppo_iterations * 2 * args.num_ppo_epochs,
        "learning_rate": args.ppo_learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 4,
        "kl_coef": args.kl_coef,
        "max_prompt_length": longest,
        "max_completion_length": args.max_completion_length,
        "temperature": args.temperature,
        "save_strategy": "steps",
        "save_steps": 2 * args.num_ppo_epochs,  # an iteration
        "save_total_limit": 2,
        "report_to": "none",
        **options,
    }
    return PPOConfig(output_dir=str(folder), seed=_seed(args, number), **settings)


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a training that is complete, which nothing resumes."""
    for each in (folder, *folder.glob("member_*")):
        for checkpoint in checkpoints(each):
            remove(checkpoint)


def _seed(args: RoundsArguments, number: int) -> int:
    return args.seed + 100 * number  # members of an ensemble count on from it


def _clear_what_cannot_resume(folder: Path) -> None:
    """Delete what a training left that was killed before its first checkpoint, or after it was saved without one."""
    if checkpoints(folder) or (folder / ENSEMBLE_FILE).is_file():
        return
    for file in folder.iterdir():
        if file.is_file() and file.name != STAGE_FILE:
            file.unlink()
