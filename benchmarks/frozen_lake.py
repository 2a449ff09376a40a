"""Teach a policy of two layers, from random weights, to cross FrozenLake 4x4 in words.

    OMP_NUM_THREADS=1 python benchmarks/frozen_lake.py                # five minutes of one core at most
    python benchmarks/frozen_lake.py --minutes 1 --seeds 0 1 2 --output frozen_lake.json

The policy reads "row 1 column 1" and writes one word, of a vocabulary in which four words are actions. The lake is not
slippery. Any other word is a random step and costs 0.1. Success is an episode that ends on the last field; the share
at the end is of 200 sampled episodes, and greedy is the one episode of the most likely words.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from hf_rlhf import PPOConfig, PPOTrainer
from hf_rlhf.environments import FrozenLake
from hf_rlhf.environments.episodes import collect_episodes
from hf_rlhf.rollout.sampling import Sampling, row_seed

PROMPT = "walk over the ice :"
WORDS = "left down right up row column 1 2 3 4 walk over the ice : wait swim fly yes no".split()  # noqa: SIM905
ENOUGH = 0.97  # of an iteration's episodes, three times in a row
TUNED: dict[str, Any] = {
    "per_device_train_batch_size": 16, "num_mini_batches": 4, "num_ppo_epochs": 4, "learning_rate": 1e-3,
    "lr_scheduler_type": "constant", "kl_coef": 0.0, "entropy_coef": 0.01, "vf_coef": 0.5, "gamma": 0.98, "lam": 0.95,
    "max_turns": 30, "max_completion_length": 1, "max_prompt_length": 16,
}  # fmt: skip


def word_tokenizer(words: Sequence[str] = WORDS) -> Any:
    """Make a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<pad>", "<unk>", "<end>", *words]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>", eos_token="<end>")


def small_llama(tokenizer: Any, seed: int) -> Any:
    """Make a Llama of two layers with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def success(episodes) -> float:
    """Return the share of episodes that end on the last field: there alone, the last reward is 1."""
    return sum(episode.env_rewards[-1].item() > 0.5 for episode in episodes) / max(len(episodes), 1)


class Crossing(PPOTrainer):
    """PPO that notes the success of each iteration's episodes."""

    curve: list[dict[str, float]]
    begun: float
    cpu_begun: float

    def sample(self, rows, seeds):
        """Like `PPOTrainer.sample`, and note the share of successes."""
        episodes = super().sample(rows, seeds)
        point = {"seconds": time.perf_counter() - self.begun, "cpu_seconds": time.process_time() - self.cpu_begun}
        self.curve.append({**point, "success": success(episodes), "turns": _mean_turns(episodes)})
        if len(self.curve) % 10 == 1:
            times = f"{point['seconds']:>6.1f} s ({point['cpu_seconds']:.1f} of the processor)"
            print(f"  iteration {len(self.curve):>4}  {times}  success {self.curve[-1]['success']:>4.0%}", flush=True)
        return episodes


class Until(TrainerCallback):
    """The end of a run: enough successes, or no time left."""

    def __init__(self, trainer: Crossing, seconds: float):
        self.trainer, self.seconds = trainer, seconds

    def on_step_end(self, args, state, control, **kwargs):
        """Stop behind the update after which one of both holds."""
        last = [each["success"] for each in self.trainer.curve[-3:]]
        learned = len(last) == 3 and min(last) >= ENOUGH
        control.should_training_stop |= learned or time.process_time() - self.trainer.cpu_begun > self.seconds


def _mean_turns(episodes) -> float:
    return sum(episode.info["turns"] for episode in episodes) / max(len(episodes), 1)


def cross(seed: int, minutes: float, folder: str, **flags: Any) -> dict[str, Any]:
    """Train with a seed, and return its curve and the success at the end."""
    tokenizer = word_tokenizer()
    rows = Dataset.from_list([{"prompt": PROMPT}] * 64)
    config = {**TUNED, **flags}
    args = PPOConfig(
        output_dir=folder, seed=seed, max_steps=100_000, use_cpu=True, report_to="none", save_strategy="no",
        disable_tqdm=True, logging_steps=1e9, **config,
    )  # fmt: skip
    make_env = partial(FrozenLake, separator=" ")
    trainer = Crossing(small_llama(tokenizer, seed), None, args, rows, processing_class=tokenizer, environment=make_env)
    trainer.curve, trainer.begun, trainer.cpu_begun = [], time.perf_counter(), time.process_time()
    trainer.add_callback(Until(trainer, 60 * minutes))
    trainer.train()
    seconds, cpu_seconds = time.perf_counter() - trainer.begun, time.process_time() - trainer.cpu_begun
    return {
        "seed": seed, "seconds": seconds, "cpu_seconds": cpu_seconds,
        "iterations": len(trainer.curve), "success": measured(trainer, 200, 1.0),
        "greedy": measured(trainer, 1, 0.0), "curve": trainer.curve,
    }  # fmt: skip


def measured(trainer: Crossing, episodes: int, temperature: float) -> float:
    """Return the share of successes of episodes that no iteration has seen."""
    tokenizer: Any = trainer.processing_class
    row = {"prompt": PROMPT, "prompt_ids": tokenizer(PROMPT)["input_ids"]}
    seeds = [row_seed("benchmark", number) for number in range(episodes)]
    make_env, limits = partial(FrozenLake, separator=" "), trainer.args.episode_limits
    sampling = Sampling(1, temperature=temperature)
    rows = [row] * episodes
    return success(collect_episodes(trainer.engine, rows, tokenizer, sampling, seeds, make_env, limits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="most time of a seed, of the processor")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, help="a file for the curves, as JSON")
    options = parser.parse_args()
    runs = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            runs.append(cross(seed, options.minutes, folder))
        run = runs[-1]
        print(
            f"seed {seed}: {run['success']:.1%} of 200 episodes, greedy {run['greedy']:.0%}, after"
            f" {run['seconds']:.0f} s"
            f" ({run['cpu_seconds']:.0f} of the processor) and {run['iterations']} iterations",
            flush=True,
        )
    if options.output:
        options.output.write_text(json.dumps(runs, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
