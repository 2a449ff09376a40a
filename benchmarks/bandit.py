"""A bandit for every estimator of the advantage: "say this token", and how much the gradient of each varies.

    OMP_NUM_THREADS=1 python benchmarks/bandit.py                       # eight estimators, five seeds, ten minutes
    OMP_NUM_THREADS=1 python benchmarks/bandit.py --seeds 1 --estimators reinforce leave_one_out
    OMP_NUM_THREADS=1 python benchmarks/bandit.py --any_token 0         # rewards of 0 and 1, where no baseline helps
    OMP_NUM_THREADS=1 python benchmarks/bandit.py --length 4            # a reward for each of four tokens

A tiny random Llama is to say one of its 29 words, which pays 2; any other word pays 1. It starts at a probability of
about 1 / 29. An iteration has 32 completions, four of each of eight prompts, and makes one update on advantages that
are not whitened. `ppo` is PPO as people run it: GAE, whitened advantages, two epochs of two minibatches. A run ends
when the policy says the word with a probability of 95 %, which is computed exactly over all prompts, and not
estimated.

Every iteration also measures the variance of the policy gradient under all estimators on the same completions. Where
a completion is one token, the script computes beside it what that measurement gives on average, by enumeration of all
tokens, and the noise: that variance by the squared norm of the mean gradient. Gradients of different scale, such as
those of `group` and `leave_one_out`, or of different mean, as that of `dae`, compare by their noise alone.
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
from torch import Tensor
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
    variances: dict[str, float]  # measured: mean over iterations, by estimator
    exact: dict[str, float]  # the same by enumeration
    signals: dict[str, float]  # squared norm of the mean gradient, by enumeration


def pays_for_the_word(any_token: float) -> Any:
    """Return a reward of `any_token` for each token, and 1 more for the word, shared among the longest's tokens."""
    word = _word()

    def reward(prompts, completion_ids, **columns) -> list[list[float]]:
        longest = max(map(len, completion_ids))
        return [[(any_token + (token == word)) / longest for token in ids] for ids in completion_ids]

    return reward


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


class Enumerated(NamedTuple):
    """All tokens that may follow a prompt: `V` of them, and `P` trained weights."""

    probabilities: Tensor  # (V,)
    scores: Tensor  # (V, P) gradients of their log-probabilities
    value: float  # of the prompt, by the critic
    fitted: Tensor | None  # (V,) by the advantage head


def enumerate_tokens(policy: Any, prompt: list[int]) -> Enumerated:
    """Return what each token behind a prompt would be for the gradient."""
    from hf_rlhf.types import Sequences

    weights, count = policy.policy_parameters(), policy.config.vocab_size
    with torch.no_grad():
        rows = policy.forward(Sequences.from_ids([prompt] * count, [[token] for token in range(count)]))
    logprobs = policy.model(torch.tensor([prompt])).logits[0, -1].float().log_softmax(dim=-1)
    scores = []
    for logprob in logprobs:
        found = torch.autograd.grad(logprob, weights, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]
        scores.append(torch.cat([part.flatten() for part in parts]).double())
    fitted = None if rows.advantages is None else rows.advantages[:, 0].double()
    return Enumerated(logprobs.detach().double().exp(), torch.stack(scores), rows.values[0, 0].item(), fitted)


def exact_variances(trainer: Any, experience: Any, any_token: float) -> tuple[dict[str, float], dict[str, float]]:
    """Return the expected value of what `gradient_variance` measures, and the squared norm of the mean gradient.

    Both are by estimator, for the prompts of this iteration and completions of one token. With `A_i = G_i - c - w sum_j
    G_j` over other completions, `E[g_i . g_j] = (1 + w^2) mu_i . mu_j`, and `E|g_i|^2` is a sum over tokens.
    """
    sequences, size = experience.sequences, trainer.args.num_generations
    prompts = [
        sequences.input_ids[row, : sequences.prompt_lengths[row]].tolist() for row in range(0, len(experience), size)
    ]
    trainer.policy.eval()
    tokens = [enumerate_tokens(trainer.policy, prompt) for prompt in prompts]
    count = len(experience)
    returns = torch.full((len(tokens[0].probabilities),), any_token, dtype=torch.float64)
    returns[_word()] += 1
    means = [float(each.probabilities @ returns) for each in tokens]
    spreads = [float(each.probabilities @ (returns - mean) ** 2) for each, mean in zip(tokens, means, strict=True)]
    decay, earlier = trainer.args.baseline_decay, trainer.earlier_returns
    others = decay * earlier.count + count - 1
    variances, signals = {}, {}

    def add(name: str, advantages: list[Tensor], spread: list[float], *, w_group: float = 0.0, w_all: float = 0.0):
        """Add an estimator: by prompt, the mean advantage of each token and the variance of its baseline."""
        means = torch.stack(
            [(each.probabilities * a) @ each.scores for each, a in zip(tokens, advantages, strict=True)]
        )
        squares = sum(
            float((each.probabilities * (a**2 + v)) @ each.scores.square().sum(dim=1))
            for each, a, v in zip(tokens, advantages, spread, strict=True)
        )
        alone, whole = means.square().sum().item(), (size * means.sum(dim=0)).square().sum().item()
        products = (1 + w_all**2) * (whole - size * alone) + w_group**2 * size * (size - 1) * alone
        squares *= size
        variances[name] = (squares - (squares + products) / count) / (count - 1)
        signals[name] = whole / count**2

    nothing = [0.0] * len(tokens)
    for name in ("reinforce", "monte_carlo"):
        add(name, [returns] * len(tokens), nothing)
    for name in ("value", "gae"):
        add(name, [returns - each.value for each in tokens], nothing)
    w = 1 / (size - 1)
    add("leave_one_out", [returns - mean for mean in means], [v * w for v in spreads], w_group=w)
    for of_all in (variances, signals):
        of_all["group"] = (1 - 1 / size) ** 2 * of_all["leave_one_out"]
    totals = [decay * earlier.total + size * sum(means) - mean for mean in means]
    noise = [(size * sum(spreads) - v) / others**2 for v in spreads]
    add("running_mean", [returns - total / others for total in totals], noise, w_all=1 / others)
    if tokens[0].fitted is not None:
        add("dae", [each.fitted for each in tokens if each.fitted is not None], nothing)
    return variances, signals


def trainer_of(estimator: str, seed: int, folder: str, *, length: int = 1, any_token: float = 1.0, **flags: Any) -> Any:
    """Return the trainer of a bandit; `flags` are of `PPOConfig`."""
    from tiny import make_model, make_prompts, make_tokenizer, make_trainer

    ppo = {"num_ppo_epochs": 2, "num_mini_batches": 2, "per_device_train_batch_size": 16}
    plain = {"num_ppo_epochs": 1, "num_mini_batches": 1, "per_device_train_batch_size": 32, "whiten_advantages": False}
    tokenizer = make_tokenizer()
    settings = {
        "advantage_estimator": "gae" if estimator == PPO else estimator, "num_generations": 4, "seed": seed,
        "kl_coef": 0.0,
        "vf_coef": 1.0, "max_completion_length": length, "learning_rate": RATE, "lr_scheduler_type": "constant",
        "max_steps": LONGEST, "num_logged_samples": 0,
    }  # fmt: skip
    return make_trainer(
        folder,
        model=make_model(tokenizer, seed=seed, num_hidden_layers=1, hidden_size=64, initializer_range=0.15),
        tokenizer=tokenizer,
        reward=pays_for_the_word(any_token),
        data=make_prompts(16),
        **{**settings, **(ppo if estimator == PPO else plain), **flags},
    )


class Measured(NamedTuple):
    """The variances of one iteration, by estimator: as measured, and as `exact_variances` says."""

    measured: dict[str, float]
    exact: dict[str, float]
    signals: dict[str, float]


def measure(trainer: Any, any_token: float | None) -> list[Measured]:
    """Return a list that gets the variances of each iteration that measures them.

    `any_token` is None for completions that are too long to enumerate.
    """
    measured, found = trainer.gradient_variances, []

    def both(experience: Any, iteration: int) -> dict[str, float]:
        variances = measured(experience, iteration)
        if variances:
            by_name = {name.partition("/")[2]: variance for name, variance in variances.items()}
            exact = ({}, {}) if any_token is None else exact_variances(trainer, experience, any_token)
            found.append(Measured(by_name, *exact))
        return variances

    trainer.gradient_variances = both
    return found


def run(estimator: str, seed: int, *, length: int = 1, any_token: float = 1.0) -> Result:
    """Train one policy with one estimator until it says the word, or for `LONGEST` updates."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(estimator, seed, folder, length=length, any_token=any_token, log_gradient_variance=1)
        found = measure(trainer, any_token if length == 1 else None)
        stop = StopAtTheWord(trainer)
        trainer.add_callback(stop)
        trainer.train()
        means = [
            {name: fmean(each[name] for each in of_all) for name in of_all[0]} for of_all in zip(*found, strict=True)
        ]
        return Result(estimator, seed, stop.updates, probability(trainer), *means)


def table(results: Sequence[Result]) -> str:
    """Return the results as a Markdown table: a row for each estimator, relative to reinforce in the same runs."""
    lines = [
        "| estimator | solved | updates, by seed | variance, measured | variance, exact | noise, exact |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(result.estimator for result in results):
        own = [result for result in results if result.estimator == name]
        solved = sum(result.updates is not None for result in own)
        updates = ", ".join("-" if result.updates is None else str(result.updates) for result in own)
        measured = "gae" if name == PPO else name
        shares = [[_share(result.variances, measured) for result in own]]
        if all(result.exact for result in own):
            noises = [{key: v / result.signals[key] for key, v in result.exact.items()} for result in own]
            shares += [
                [_share(result.exact, measured) for result in own],
                [_share(noise, measured) for noise in noises],
            ]
        words = [f"{fmean(each):.2f}" for each in shares]
        lines.append(f"| {name} | {solved} of {len(own)} | {updates} | {' | '.join(words + [''] * (3 - len(words)))} |")
    return "\n".join(lines)


def _share(numbers: dict[str, float], name: str) -> float:
    return numbers[name] / numbers["reinforce"]


def main() -> None:
    """Run what the flags ask for, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimators", nargs="+", default=RUNS, choices=RUNS)
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0")
    parser.add_argument("--length", type=int, default=1, help="tokens of a completion")
    parser.add_argument("--any_token", type=float, default=1.0, help="reward of any token; the word pays 1 more")
    parser.add_argument("--output", type=Path, default=None, help="a JSON file to write")
    args = parser.parse_args()
    results = []
    for seed in range(args.seeds):
        for name in args.estimators:
            results.append(run(name, seed, length=args.length, any_token=args.any_token))
            print(f"{name}, seed {seed}: {results[-1].updates} updates, {results[-1].probability:.3f}", flush=True)
            if args.output is not None:
                rows = json.dumps([result._asdict() for result in results], indent=1)
                args.output.write_text(rows + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
