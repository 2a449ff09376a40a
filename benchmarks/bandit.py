"""A bandit for every estimator of the advantage: "say this token", and how much the gradient of each varies.

    OMP_NUM_THREADS=1 python benchmarks/bandit.py                       # eight estimators, five seeds, ten minutes
    OMP_NUM_THREADS=1 python benchmarks/bandit.py --seeds 1 --estimators reinforce leave_one_out
    OMP_NUM_THREADS=1 python benchmarks/bandit.py --length 4            # a reward for each of four tokens

A tiny random Llama is to say one of its 29 words, which pays 1; any other word pays 0. It starts at a probability of
about 1 / 29. An iteration has 32 completions, four of each of eight prompts, and makes one update on advantages that are
not whitened. `ppo` is PPO as people run it: GAE, whitened advantages, two epochs of two minibatches. A run ends when the
policy says the word with a probability of 95 %, which is computed exactly over all prompts, and not estimated.

Every second iteration also measures the variance of the policy gradient under all estimators on the same completions.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from transformers import TrainerCallback

from hf_rlhf.ppo.rules import ESTIMATORS

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # for its tiny model

WORD, SOLVED, LONGEST, RATE = "happy", 0.95, 200, 1e-2
PPO = "ppo"
RUNS = (*(name for name in ESTIMATORS if name != "gae"), PPO)


class Result(NamedTuple):
    """One run: the updates that it took, None for one that did not come there, and the variances on the way."""

    estimator: str
    seed: int
    updates: int | None
    probability: float  # at the end
    variances: dict[str, float]  # mean over iterations, by estimator


def pays_for_the_word(prompts, completion_ids, **columns) -> list[list[float]]:
    """Return 1 for each token that is the word, shared among the tokens of the longest completion."""
    longest = max(map(len, completion_ids))
    return [[float(token == _word()) / longest for token in ids] for ids in completion_ids]


def _word() -> int:
    from tiny import make_tokenizer

    return make_tokenizer().convert_tokens_to_ids(WORD)


def probability(trainer: Any) -> float:
    """Return the mean probability of the word as the first token of the completion, over all prompts."""
    ids = trainer.prompt_set["prompt_ids"]
    with torch.no_grad():
        logits = [trainer.policy.model(torch.tensor([each])).logits[0, -1].float() for each in ids]
    return torch.stack(logits).softmax(dim=-1)[:, _word()].mean().item()


class StopAtTheWord(TrainerCallback):
    """A callback that ends a run at the end of the iteration in which the policy came to say the word."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.updates: int | None = None

    def on_step_end(self, args, state, control, **kwargs):
        """Look, at the end of an iteration."""
        if state.global_step % args.updates_per_iteration == 0 and probability(self.trainer) >= SOLVED:
            self.updates = state.global_step
            control.should_training_stop = True
        return control


def run(estimator: str, seed: int, *, length: int = 1, variances: bool = True) -> Result:
    """Train one policy with one estimator until it says the word, or for `LONGEST` updates."""
    from tiny import make_model, make_prompts, make_tokenizer, make_trainer, metrics_of

    ppo = {"num_ppo_epochs": 2, "num_mini_batches": 2, "per_device_train_batch_size": 16}
    plain = {"num_ppo_epochs": 1, "num_mini_batches": 1, "per_device_train_batch_size": 32, "whiten_advantages": False}
    tokenizer = make_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            folder,
            model=make_model(tokenizer, seed=seed, num_hidden_layers=1, hidden_size=64, initializer_range=0.15),
            tokenizer=tokenizer,
            reward=pays_for_the_word,
            data=make_prompts(16),
            **(ppo if estimator == PPO else plain),
            advantage_estimator="gae" if estimator == PPO else estimator,
            num_generations=4,
            seed=seed,
            max_completion_length=length,
            kl_coef=0.0,
            vf_coef=1.0,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            max_steps=LONGEST,
            num_logged_samples=0,
            log_gradient_variance=2 if variances else None,
        )
        stop = StopAtTheWord(trainer)
        trainer.add_callback(stop)
        trainer.train()
        rows = [row for row in metrics_of(folder) if "iteration" in row]
        names = [name for name in rows[0] if name.startswith("gradient_variance/")]
        means = {name.partition("/")[2]: fmean(row[name] for row in rows if name in row) for name in names}
        return Result(estimator, seed, stop.updates, probability(trainer), means)


def table(results: Sequence[Result]) -> str:
    """Return the results as a Markdown table: a row for each estimator."""
    lines = ["| estimator | solved | updates, by seed | gradient variance, of reinforce's |", "|---|---|---|---|"]
    for name in dict.fromkeys(result.estimator for result in results):
        own = [result for result in results if result.estimator == name]
        solved = sum(result.updates is not None for result in own)
        updates = ", ".join("-" if result.updates is None else str(result.updates) for result in own)
        measured = "gae" if name == PPO else name
        share = [result.variances[measured] / result.variances["reinforce"] for result in own if result.variances]
        lines.append(f"| {name} | {solved} of {len(own)} | {updates} | {f'{fmean(share):.2f}' if share else ''} |")
    return "\n".join(lines)


def main() -> None:
    """Run what the flags ask for, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimators", nargs="+", default=RUNS, choices=RUNS)
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0")
    parser.add_argument("--length", type=int, default=1, help="tokens of a completion")
    parser.add_argument("--output", type=Path, default=None, help="a JSON file to write")
    args = parser.parse_args()
    results = []
    for name in args.estimators:
        for seed in range(args.seeds):
            results.append(run(name, seed, length=args.length))
            print(f"{name}, seed {seed}: {results[-1].updates} updates, {results[-1].probability:.3f}", flush=True)
            if args.output is not None:
                rows = json.dumps([result._asdict() for result in results], indent=1)
                args.output.write_text(rows + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
