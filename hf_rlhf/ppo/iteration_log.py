"""The numbers of one iteration, gathered while it runs and given out when it ends."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from hf_rlhf.distributed import gather_in_order, global_sum
from hf_rlhf.errors import InputError
from hf_rlhf.ppo.metrics import METRICS, mean_of_each, sampled_tokens, update_metrics
from hf_rlhf.types import Trajectory


class IterationLog:
    """Metrics of the rollout, sums over the updates, and seconds of each phase.

    Args:
        rollout_batch_size: completions an iteration, over all ranks.
    """

    def __init__(self, rollout_batch_size: int):
        self.rollout_batch_size = rollout_batch_size
        self.tokens_sampled = 0
        self.start()

    def start(self) -> None:
        """Forget the iteration before."""
        self.last: dict[str, float] = {}  # all numbers of the iteration, once it is finished
        self.metrics: dict[str, float] = {}
        self._of_rewards: dict[str, list[float]] = {}
        self._first_ratio_error = 0.0
        self._sums: dict[str, Tensor] = {}
        self._seconds: dict[str, float] = {}
        self._thread = threading.get_ident()
        self._updates_started = time.perf_counter()

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the block's seconds to a phase; beside the thread of the run nothing takes time."""
        start = time.perf_counter()
        yield
        if threading.get_ident() == self._thread:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - start

    @contextmanager
    def outside_iteration(self) -> Iterator[None]:
        """Keep what the block measures out of the iteration."""
        seconds, rewards = dict(self._seconds), self._of_rewards
        self._of_rewards = {}
        try:
            yield
        finally:
            self._seconds, self._of_rewards = seconds, rewards

    def add_reward_metrics(self, metrics: dict[str, list[float]], cached: dict[str, list[float]] | None = None) -> None:
        """Take in the numbers that reward functions logged on this rank, and which rewards a cache held.

        Raises `InputError` for a name of PPO's own.
        """
        if taken := sorted(name for name in metrics if name in METRICS or name.startswith("rewards/")):
            raise InputError(
                f"a reward logged {', '.join(taken)} by log_metric, which PPO logs itself; take another name"
            )
        metrics = metrics | {f"rewards/{name}/cached": held for name, held in (cached or {}).items()}
        for name, values in metrics.items():
            self._of_rewards.setdefault(name, []).extend(values)

    def reward_metrics(self) -> dict[str, float]:
        """Return the means of what reward functions logged, over all ranks. Every rank takes part."""
        return mean_of_each(gather_in_order([self._of_rewards]))

    def add_rollout(self, iteration: int, trajectories: Sequence[Trajectory], metrics: dict[str, float]) -> None:
        """Take in this rank's completions and the metrics made of those of all ranks; the updates begin."""
        tokens = torch.tensor(sum(map(sampled_tokens, trajectories)))
        self.tokens_sampled += int(global_sum(tokens))
        self.metrics = {
            "iteration": float(iteration + 1),
            "episode": float((iteration + 1) * self.rollout_batch_size),
            "num_tokens": float(self.tokens_sampled),
            "policy/updates": 0.0,
            "policy/skipped_updates": 0.0,
            "policy/empty_updates": 0.0,
            **metrics,
        }
        self._updates_started = time.perf_counter()

    def add_update(self, stats: dict[str, Tensor], log_ratio: Tensor) -> None:
        """Take in one micro-batch of this rank: sums, see `update_metrics`, and `(B, T)` log ratios."""
        for name, stat in stats.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=stat.device)) + stat
        if self.metrics["policy/updates"] == self.metrics["policy/skipped_updates"] == 0:  # the weights that sampled
            self._first_ratio_error = max(self._first_ratio_error, (log_ratio.exp() - 1).abs().max().item())

    def count(self, name: str) -> None:
        """Count one more of what a metric counts."""
        self.metrics[name] += 1

    def finished(self) -> dict[str, float]:
        """Return all numbers of the iteration, its updates summed over ranks. Every rank takes part."""
        names = sorted(self._sums)
        totals = global_sum(torch.stack([self._sums[name].float() for name in names])).tolist()
        first_ratio_errors = gather_in_order([self._first_ratio_error])
        seconds = {**self._seconds, "update": time.perf_counter() - self._updates_started}
        self._seconds = {}
        self.last = {
            **self.metrics,
            **self.reward_metrics(),
            "val/first_ratio_error": max(first_ratio_errors),
            **update_metrics(dict(zip(names, totals, strict=True))),
            **{f"time/{name}": value for name, value in seconds.items()},
            "step_time": sum(seconds.values()),
            "eps": self.rollout_batch_size / sum(seconds.values()),
        }
        return self.last
