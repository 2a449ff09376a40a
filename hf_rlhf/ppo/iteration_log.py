"""The numbers of one iteration, gathered while it runs and given out when it ends."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from hf_rlhf.distributed import global_sum
from hf_rlhf.ops import PolicyLoss, ValueLoss
from hf_rlhf.ppo.metrics import reward_metrics, rollout_metrics, sampler_gap, update_metrics
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
        self.metrics: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}
        self._seconds: dict[str, float] = {}
        self._updates_started = time.perf_counter()

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the block's seconds to a phase."""
        start = time.perf_counter()
        yield
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - start

    def add_rollout(
        self,
        iteration: int,
        trajectories: Sequence[Trajectory],
        plain_rewards: Sequence[float | None],
        objective: dict[str, float],
    ) -> None:
        """Take in the completions of all ranks and what PPO makes of them; the updates begin."""
        self.tokens_sampled += sum(len(trajectory.completion.ids) for trajectory in trajectories)
        self.metrics = {
            "iteration": float(iteration + 1),
            "episode": float((iteration + 1) * self.rollout_batch_size),
            "num_tokens": float(self.tokens_sampled),
            **objective,
            **reward_metrics(plain_rewards),
            **rollout_metrics(trajectories),
            "val/num_eos_tokens": float(sum(trajectory.completion.stopped for trajectory in trajectories)),
            "sampling/logp_gap": sampler_gap(trajectories),
        }
        self._updates_started = time.perf_counter()

    def add_update(self, policy: PolicyLoss, value: ValueLoss, log_ratio: Tensor, mask: Tensor) -> None:
        """Take in the losses of one micro-batch of this rank; `log_ratio` and `mask` are `(B, T)`."""
        sums = {f"policy/{name}": stat for name, stat in policy.stats.items()}
        sums |= {f"value/{name}": stat for name, stat in value.stats.items()}
        sums |= {"policy/loss": policy.loss.detach(), "value/loss": value.loss.detach(), "tokens": mask.sum()}
        for name, stat in sums.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=stat.device)) + stat
        if "val/first_ratio_error" not in self.metrics:
            self.metrics["val/first_ratio_error"] = ((log_ratio.exp() - 1).abs() * mask).max().item()

    def finished(self) -> dict[str, float]:
        """All numbers of the iteration, its updates summed over ranks. Every rank takes part."""
        names = sorted(self._sums)
        totals = global_sum(torch.stack([self._sums[name].float() for name in names])).tolist()
        seconds = {**self._seconds, "update": time.perf_counter() - self._updates_started}
        self._seconds = {}
        return {
            **self.metrics,
            **update_metrics(dict(zip(names, totals, strict=True))),
            **{f"time/{name}": value for name, value in seconds.items()},
            "step_time": sum(seconds.values()),
            "eps": self.rollout_batch_size / sum(seconds.values()),
        }
