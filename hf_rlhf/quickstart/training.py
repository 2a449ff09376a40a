"""Stages 3 and 4: a reward model of the preferences, and PPO against it."""

import json
from pathlib import Path
from typing import Any

from transformers import set_seed

from hf_rlhf.checkpoint.computation import Computation, recorded_computation
from hf_rlhf.checkpoint.folders import checkpoints, remove
from hf_rlhf.checkpoint.lock import locked
from hf_rlhf.checkpoint.resume import AUTO, VerifiedCheckpoint, resume_point
from hf_rlhf.evaluation.reward_model import Pairs, reward_accuracy
from hf_rlhf.hub.model_card import reward_model_card
from hf_rlhf.models.load import load_causal_lm, load_sequence_classifier, load_tokenizer, public_name
from hf_rlhf.models.precision import NATIVE, current_device
from hf_rlhf.models.reward_model import load_reward_model
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.trainer import PPOTrainer
from hf_rlhf.progress import progress_of
from hf_rlhf.quickstart.arguments import PREFERENCES, REWARD_MODEL, ROLLOUT_SIZE, QuickstartArguments
from hf_rlhf.quickstart.person import ME
from hf_rlhf.quickstart.prompts import quickstart_prompts
from hf_rlhf.quickstart.replies import as_messages
from hf_rlhf.recipes.arguments import RewardTrainingArguments
from hf_rlhf.records import read_json_lines
from hf_rlhf.rewards.learned import LearnedReward
from hf_rlhf.training.trl_setup import adapters_in_base_dtype, make_reward_trainer, save_trained

COMPUTATION_FILE = "computation.json"
"""File in the policy's folder that says in which dtypes and on which device it was trained."""


def train_reward_model(args: QuickstartArguments, root: Path, folder: Path) -> None:
    """Run stage 3: train a LoRA reward model on the same base, by trl's RewardTrainer, resuming from `folder`."""
    from datasets import Dataset

    tokenizer = load_tokenizer(args.model_name_or_path)
    train, test = (
        Dataset.from_list(read_json_lines(root / PREFERENCES / f"{split}.jsonl")) for split in ("train", "test")
    )
    training = RewardTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        learning_rate=args.reward_learning_rate,
        warmup_steps=5,
        center_rewards_coefficient=0.01,
        num_train_epochs=4 if args.annotator == ME else 1,  # of a few dozen preferences, or a few hundred
        logging_steps=5,
        save_strategy="steps",
        save_steps=5,
        save_total_limit=2,
        report_to="none",
        seed=args.seed,
    )
    checkpoint = _newest_checkpoint(folder)
    training = training.with_autocast_of(checkpoint)
    set_seed(args.seed)  # before the score head's random start
    classifier = load_sequence_classifier(args.model_name_or_path, dtype=_dtype(checkpoint), **args.model_kwargs)
    trainer = make_reward_trainer(classifier, tokenizer, training, train, peft_config=args.lora(classifier))
    with adapters_in_base_dtype(trainer.model):
        trainer.train(resume_from_checkpoint=checkpoint or AUTO)
    save_trained(trainer, folder)
    scorer, _ = load_reward_model(str(folder), **args.model_kwargs)
    scorer.model.to(current_device())
    reward = LearnedReward(scorer, tokenizer, device=current_device())
    with progress_of(1, "     agreement with held-out preferences"):
        accuracy = reward_accuracy(reward, Pairs.from_dataset(test))
    (folder / "evaluation.json").write_text(json.dumps(accuracy, indent=2) + "\n", encoding="utf-8")
    card = reward_model_card(
        model_id=str(root / REWARD_MODEL),
        base_model=public_name(args.model_name_or_path),
        results={"held-out accuracy": f"{accuracy['eval_accuracy']:.3f} ({accuracy['eval_rows']:.0f} pairs)"},
        settings={"learning_rate": training.learning_rate, "pairs": len(train), "seed": args.seed}
        | trainer.computation.for_card(),
        demonstration=True,
        simulated_annotator=args.annotator != ME,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def train_policy(args: QuickstartArguments, reward_model: Path, folder: Path, **flags: Any) -> None:
    """Train by PPO against `reward_model`, from the newest checkpoint in `folder` (stage 4).

    `flags` go to `PPOConfig`, before `args`.

    The policy's adapter and the reward model's share one base; with both off it is the reference.
    """
    from datasets import Dataset

    prompts = [{"prompt": as_messages(text)} for text in quickstart_prompts()["train"]]
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": ROLLOUT_SIZE // 2,
        "num_mini_batches": 2,
        "num_ppo_epochs": args.num_ppo_epochs,
        "max_steps": args.size.ppo_iterations * 2 * args.num_ppo_epochs,
        "learning_rate": args.ppo_learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 4,
        "kl_coef": args.kl_coef,
        "max_prompt_length": 128,
        "max_completion_length": args.max_completion_length,
        "temperature": args.temperature,
        "save_strategy": "steps",
        "save_steps": 2 * args.num_ppo_epochs,  # an iteration
        "save_total_limit": 2,
        "report_to": "none",
        "seed": args.seed,
    }
    training = PPOConfig(**(settings | flags))
    checkpoint = _newest_checkpoint(folder)
    policy = load_causal_lm(args.model_name_or_path, dtype=_dtype(checkpoint), **args.model_kwargs)
    trainer = PPOTrainer(
        policy,
        str(reward_model),
        training,
        Dataset.from_list(prompts),
        processing_class=load_tokenizer(args.model_name_or_path),
        peft_config=args.lora(policy),
    )
    trainer.train(resume_from_checkpoint=checkpoint or AUTO)
    trainer.save_model()
    facts = trainer.computation.facts()
    (folder / COMPUTATION_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def policy_computation(policy: Path) -> Computation:
    """Read how the policy in this folder was trained; earlier versions recorded nothing."""
    file = policy / COMPUTATION_FILE
    return Computation.from_facts(json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {})


def _newest_checkpoint(folder: Path) -> VerifiedCheckpoint | None:
    """Return the checkpoint that a stage resumes from; None for one that begins."""
    with locked(folder):
        return resume_point(folder, AUTO)


def _dtype(checkpoint: VerifiedCheckpoint | None) -> str:
    """Return the dtype in which a stage loads its base: that of the checkpoint it resumes from, or the native one."""
    recorded = None if checkpoint is None else recorded_computation(checkpoint).base
    return recorded or NATIVE


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a stage that is complete, which nothing resumes."""
    for checkpoint in checkpoints(folder):
        remove(checkpoint)
