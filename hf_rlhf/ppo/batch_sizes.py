"""The sizes of an iteration: completions of a rollout, a minibatch and a rank, of which some follow from the others."""

import copy
from typing import TYPE_CHECKING, TypeVar

from hf_rlhf.errors import InputError

SIZES = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_mini_batches", "rollout_batch_size")
"""Flags that say how many completions an iteration and its updates have."""

Sizes = TypeVar("Sizes", bound="BatchSizes")


class Derived(int):
    """A batch size that follows from the others."""


class BatchSizes:
    """The batch sizes of `PPOConfig`, whose flags they are computed from."""

    if TYPE_CHECKING:  # the fields are those of `PPOConfig`
        per_device_train_batch_size: int
        gradient_accumulation_steps: int
        num_mini_batches: int
        rollout_batch_size: int
        num_ppo_epochs: int
        num_generations: int
        world_size: int

    def settle_batch_sizes(self) -> None:
        """Compute `num_mini_batches` or `rollout_batch_size` from the other."""
        for name in SIZES[:3]:
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name}={value} is invalid: it must be at least 1.")
        minibatches, rollout = self._given("num_mini_batches"), self._given("rollout_batch_size")
        if rollout is None:
            minibatches = minibatches or 1
            self.__dict__["num_mini_batches"] = minibatches
            self.__dict__["rollout_batch_size"] = Derived(self.minibatch_size * minibatches)
        elif minibatches is None:
            self.__dict__["num_mini_batches"] = Derived(self._minibatches_of_a_rollout(self.world_size))
        else:
            self._minibatches_of_a_rollout(self.world_size)
        self.__dict__["_settled"] = True

    def _given(self, name: str) -> int | None:
        """Return a size, None if it follows from the others."""
        value = getattr(self, name)
        return None if isinstance(value, Derived) else value

    def _minibatches_of_a_rollout(self, ranks: int) -> int:
        minibatch_size = self.per_device_train_batch_size * self.gradient_accumulation_steps * ranks
        minibatches, rest = divmod(self.rollout_batch_size, minibatch_size)
        if rest or minibatches < 1:
            raise InputError(
                f"rollout_batch_size={self.rollout_batch_size} is invalid: it is no multiple of the minibatch's"
                f" {minibatch_size} completions ({self.per_device_train_batch_size} per device x"
                f" {self.gradient_accumulation_steps} accumulated x {_count(ranks, 'rank')}). Take"
                f" {max(minibatches, 1) * minibatch_size}, or change per_device_train_batch_size"
            )
        if self._given("num_mini_batches") not in (None, minibatches):
            raise InputError(
                f"num_mini_batches={self.num_mini_batches} is invalid: rollout_batch_size={self.rollout_batch_size}"
                f" holds {_count(minibatches, 'minibatch', 'es')} of {minibatch_size} completions on"
                f" {_count(ranks, 'rank')}. Give one of the two"
            )
        return minibatches

    def on_ranks(self: Sizes, ranks: int) -> Sizes:
        """Return the settings with the batch sizes of a run on `ranks` ranks: a given `rollout_batch_size` stays.

        Raises `InputError` where that is no multiple of the minibatch there.
        """
        config = copy.copy(self)
        if self._given("rollout_batch_size") is None:
            config.__dict__["rollout_batch_size"] = Derived(self.rank_batch_size * ranks)
        else:
            minibatches = self._minibatches_of_a_rollout(ranks)
            if self._given("num_mini_batches") is None:
                config.__dict__["num_mini_batches"] = Derived(minibatches)
        return config

    @property
    def minibatch_size(self) -> int:
        """Completions per optimizer update, over all ranks."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def rank_batch_size(self) -> int:
        """Completions per iteration that each rank samples."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.num_mini_batches

    @property
    def prompts_per_iteration(self) -> int:
        """Prompts per iteration, over all ranks."""
        return self.rollout_batch_size // self.num_generations

    @property
    def updates_per_iteration(self) -> int:
        """Optimizer updates per iteration."""
        return self.num_ppo_epochs * self.num_mini_batches

    def batch_algebra(self, ranks: int | None = None) -> str:
        """Return the sizes of an iteration on `ranks` ranks in words; by default on those of this run."""
        ranks = ranks or self.world_size
        several = f", {self.num_generations} for each prompt" if self.num_generations > 1 else ""
        return (
            f"{self.rank_batch_size * ranks} completions an iteration = {self.per_device_train_batch_size} per device"
            f" x {self.gradient_accumulation_steps} accumulated x {_count(self.num_mini_batches, 'minibatch', 'es')}"
            f" x {_count(ranks, 'rank')}{several};"
            f" {_count(self.updates_per_iteration, 'optimizer update')} an iteration"
            f" = {_count(self.num_ppo_epochs, 'PPO epoch')} x {_count(self.num_mini_batches, 'minibatch', 'es')}"
        )


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{'' if number == 1 else plural}"
