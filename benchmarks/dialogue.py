"""A dialogue of two turns whose reward comes at the end, for what the first reply said: does its value travel back?

    python benchmarks/dialogue.py                                   # SmolLM2-135M on two cores, about half an hour
    python benchmarks/dialogue.py --iterations 6 --seeds 0 1        # shorter, two seeds

The user asks, the policy replies, the user says "Thank you.", the policy replies again, and then the environment pays:
up to 1 for exclamation marks in the first reply. Both runs have the same prompts, seeds and settings. `whole` estimates
advantages over the episode, across the tokens of the user. `cut` is the ablation: it estimates those of each reply by
itself, so the first reply is never told what it earned.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from hf_rlhf import PPOConfig, PPOTrainer
from hf_rlhf.environments import Dialogue
from hf_rlhf.models.load import EMBEDDED_MODEL, load_causal_lm, load_tokenizer
from hf_rlhf.ops import gae
from hf_rlhf.quickstart.arguments import QuickstartArguments
from hf_rlhf.quickstart.prompts import quickstart_prompts
from hf_rlhf.rollout.sampling import row_seed

MARKS = 3  # exclamation marks that earn the whole reward


def paid_at_the_end(messages: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> float | None:
    """Return the reward of the first reply once there are two; None before."""
    replies = [message["content"] for message in messages if message["role"] == "assistant"]
    return None if len(replies) < 2 else earned(replies[0])


def earned(reply: str) -> float:
    """Return what a first reply earns, in [0, 1]."""
    return min(reply.count("!"), MARKS) / MARKS


make_dialogue = partial(Dialogue, ["Thank you."], reached=paid_at_the_end, max_turns=2)


class CutAtTurns(PPOTrainer):
    """PPO whose advantages end where a reply ends: the ablation."""

    def advantages(self, experience) -> tuple[Tensor, Tensor]:
        """Return advantages and returns `(B, T)`, each reply an episode of its own that terminates."""
        mask, args = experience.mask, self.args
        before = torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], dim=1)
        turn = (mask & ~before).cumsum(dim=1)
        advantages, returns = torch.zeros_like(experience.values), torch.zeros_like(experience.values)
        for number in range(1, int(turn.max()) + 1):
            here = mask & (turn == number)
            part = gae(experience.per_token_rewards, experience.values, here, args.gamma, args.lam)
            advantages, returns = (
                torch.where(here, part.advantages, advantages),
                torch.where(here, part.returns, returns),
            )
        return advantages, returns


def train(trainer_class: type[PPOTrainer], seed: int, folder: str, **flags: Any) -> list[float]:
    """Train SmolLM2 by one of both; return what first replies to held-out prompts earn before and after."""
    quick = QuickstartArguments()
    settings = {
        "output_dir": folder, "per_device_train_batch_size": 16, "num_mini_batches": 2, "num_ppo_epochs": 2,
        "learning_rate": 5e-4, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 4, "kl_coef": 0.01,
        "max_prompt_length": 128, "max_completion_length": 24, "max_turns": 2, "temperature": 0.7, "seed": seed,
        "save_strategy": "no", "report_to": "none", "num_logged_samples": 0, "lam": 1.0, "vf_coef": 0.5,
    }  # fmt: skip
    policy = load_causal_lm(EMBEDDED_MODEL, **quick.model_kwargs)
    trainer = trainer_class(
        policy,
        None,
        PPOConfig(**(settings | flags)),
        prompts("train"),
        processing_class=load_tokenizer(EMBEDDED_MODEL),
        peft_config=quick.lora(policy),
        environment=make_dialogue,
        eval_dataset=prompts("test"),
    )
    before = held_out(trainer)
    trainer.train()
    return [before, held_out(trainer)]


def prompts(split: str) -> Dataset:
    """Return the quickstart's prompts of a split as messages."""
    return Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in quickstart_prompts()[split]])


def held_out(trainer: PPOTrainer) -> float:
    """Return the mean of what first replies to the held-out prompts earn."""
    rows = list(trainer.eval_dataset)
    seeds = [row_seed("dialogue", number) for number in range(len(rows))]
    return fmean(reward.total or 0.0 for reward in trainer.rollout_outside(rows, seeds).rewards)


def main() -> None:
    """Run what the flags ask for, print a table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=None, help="a JSON file to write")
    args = parser.parse_args()
    results = []
    for seed in args.seeds:
        for name, trainer_class in (("whole", PPOTrainer), ("cut", CutAtTurns)):
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                before, after = train(trainer_class, seed, folder, max_steps=4 * args.iterations)
            seconds = time.perf_counter() - start
            results.append({"seed": seed, "advantages": name, "before": before, "after": after, "seconds": seconds})
            print(f"seed {seed}, {name}: {before:.3f} -> {after:.3f} ({seconds:.0f} s)", flush=True)
    if args.output is not None:
        args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
