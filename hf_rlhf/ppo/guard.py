"""The decision to make an update, taken from all micro-batches and ranks together before the optimizer steps."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import TrainerCallback

from hf_rlhf.distributed import global_sum
from hf_rlhf.errors import InputError
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.iteration_log import IterationLog

RATIO, APPROX_KL = "val/ratio", "policy/approxkl_avg"  # among the stats of the loss


class UpdateGuard(TrainerCallback):
    """Drops the gradients of an update that must not be made; the optimizer then leaves those weights alone.

    - `ratio_threshold`: the minibatch's mean ratio is above it. The update is skipped and counted.
    - `early_stop_kl`: the minibatch's mean `(log ratio)^2 / 2` is above it. This update and all others of the
      iteration are skipped.

    An update that is `refused` already, because of NaN or infinity, is not counted as made. One without a micro-batch
    to learn from is counted as empty, unless the iteration's updates have ended.

    Args:
        config: of the run.
        log: counts the updates.
        parameters: gives every trained parameter.
    """

    def __init__(
        self,
        config: PPOConfig,
        log: IterationLog,
        parameters: Callable[[], Iterable[Parameter]],
    ):
        self.config = config
        self.log = log
        self.parameters = parameters
        limits = {RATIO: config.ratio_threshold, APPROX_KL: config.early_stop_kl}
        self._limits = {name: limit for name, limit in limits.items() if limit is not None}
        self.refused = False
        self.start_iteration()

    def start_iteration(self) -> None:
        """Forget the iteration before."""
        self.stopped = False
        self._sums: Tensor | None = None

    def add(self, stats: dict[str, Tensor]) -> None:
        """Take in the sums of one micro-batch of this rank; a user's loss may lack those not asked for."""
        if missing := [name for name in self._limits if name not in stats]:
            raise InputError(
                f"ratio_threshold and early_stop_kl read {' and '.join(missing)} from the stats of the loss, which"
                " are not there; let loss() return them, or omit the flag"
            )
        sums = torch.stack([stats[name].float() for name in (*self._limits, "tokens")])
        self._sums = sums if self._sums is None else self._sums + sums

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Decide; every rank takes part and comes to the same end."""
        sums, self._sums = self._sums, None
        refused, self.refused = self.refused, False
        if sums is None and not self.stopped:
            self.log.count("policy/empty_updates")
        if sums is None or refused:
            return control
        if self._limits:
            *totals, tokens = global_sum(sums).tolist()
            limits = zip(self._limits.items(), totals, strict=True)
            exceeded = [name for (name, limit), total in limits if total > limit * tokens]
            self.stopped = APPROX_KL in exceeded
            if exceeded:
                if not self.stopped:
                    self.log.count("policy/skipped_updates")
                drop_gradients(self.parameters())
                return control
        self.log.count("policy/updates")
        return control


def drop_gradients(parameters: Iterable[Parameter]) -> None:
    """Leave the optimizer nothing to do for these parameters in this update."""
    for parameter in parameters:
        parameter.grad = None
