"""Evaluation of a PPO run: completions for held-out prompts, their rewards and their KL."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_rlhf.distributed import take_share
from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import keep_modes
from hf_rlhf.ppo.build import evaluation_rows
from hf_rlhf.ppo.experience import Rollout
from hf_rlhf.ppo.manual_loop import ManualLoop
from hf_rlhf.ppo.metrics import evaluation_metrics
from hf_rlhf.types import ForwardPass, Sequences, Trajectory

PADDING_TOKENS = 32  # of each prompt that shows whether padding matters


class Evaluation(ManualLoop):
    """A trainer that samples completions for evaluation prompts."""

    eval_dataset: Any
    _eval_sets: list[Any]  # prepared

    # What `PPOTrainer` brings

    def rollout(self, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> Rollout:
        """Return a completion for each row and its reward."""
        raise NotImplementedError

    def forward_pass(self, trajectories: Sequence[Trajectory], *, kl_only: bool = False) -> list[ForwardPass]:
        """Return the log-probabilities and the KL of each completion's tokens."""
        raise NotImplementedError

    # What those who watch a run call

    def rollout_outside(self, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> Rollout:
        """Return a completion for each prepared row and its reward, outside of any iteration. Every rank takes part."""
        with self.iteration_log.outside_iteration(), self.kept_states.keep_nothing(), self._sampling():
            return self.rollout(rows, seeds)

    def padding_error(self, rows: Sequence[Mapping[str, Any]]) -> float:
        """Return how far padding moves a log-probability: the mean |difference| of a short sequence's tokens, in nats.

        A short sequence is passed alone and beside a longer one, made of the prompts of two rows, of which it is the
        first tokens. It is 0 but for rounding. Every rank takes part.
        """
        room = (self.args.max_prompt_length + self.args.max_completion_length) // 3  # of three parts, within positions
        first, second = (list(row["prompt_ids"])[: max(min(PADDING_TOKENS, room), 1)] for row in rows)
        alone, beside = ([first], [first, first + second])
        found = []
        with (
            self.kept_states.keep_nothing(),
            self._weights(),
            self._failing(),
            keep_modes(self.policy),
            torch.no_grad(),
        ):
            self.policy.eval()
            for prompts in (alone, beside):
                sequences = Sequences.from_ids(prompts, [first] * len(prompts)).to(self.args.device)
                output: Any = self.policy.forward(sequences, values=False, entropy=False, reference=False)
                found.append(output.logprobs[0, : len(first)])
        return (found[0] - found[1]).abs().mean().item()

    # What Trainer calls

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Sample completions for evaluation prompts; log `eval_reward`, `eval_kl` and more.

        The draws are the same each time.
        """
        prepared: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(prepared, str):
            prepared = self.eval_dataset[prepared]
        if isinstance(prepared, Mapping):
            metrics: dict[str, float] = {}
            for key, part in prepared.items():
                metrics.update(self.evaluate(part, metric_key_prefix=f"{metric_key_prefix}_{key}"))
            return metrics
        if prepared is None:
            raise InputError("evaluation needs an eval_dataset; give one to PPOTrainer or to evaluate()")
        if not any(prepared is each for each in self._eval_sets):
            prepared = evaluation_rows(prepared, self.rewards, self.processing_class, self.args)
        self._stop_at_end_of_turn(self._turns(prepared)[0])

        start = time.perf_counter()
        rows = take_share(list(range(len(prepared))))
        with self.iteration_log.outside_iteration(), self.kept_states.keep_nothing():
            seeds = self._seeds("eval", 0, len(rows))
            with self._sampling():
                rollout = self.rollout([prepared[row] for row in rows], seeds)
            self.require_few_failures(rollout.trajectories)
            with self._weights(), self._failing():
                passes = self.forward_pass(rollout.trajectories, kl_only=True)
            logged = self.iteration_log.reward_metrics()
        metrics = evaluation_metrics(rollout.trajectories, rollout.rewards, passes)
        metrics |= {**logged, "runtime": time.perf_counter() - start}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.write_samples(rollout, None, metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
