"""The layout of weights, gradients and optimizer state on the ranks of a run, and the memory that it takes on each."""

from dataclasses import dataclass
from typing import Literal

from transformers.training_args import OptimizerNames

from hf_rlhf.checkpoint.launches import require_shardable_base, require_shardable_optimizer
from hf_rlhf.distributed import asked_for
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.launch import require_flags_of_deepspeed, require_flags_of_fsdp

Strategy = Literal["ddp", "fsdp2", "zero2"]

_BUCKET = 5e8  # weights in the buffer in which DeepSpeed reduces gradients (reduce_bucket_size)
_BLOCKS_AT_ONCE = 2  # FSDP gathers the next block while one runs


@dataclass(frozen=True)
class Layout:
    """The strategy and the number of ranks."""

    strategy: Strategy = "ddp"
    ranks: int = 1

    @classmethod
    def of_launch(cls, ranks: int) -> "Layout":
        """Return the layout that the launcher asked this process for."""
        known: dict[str, Strategy] = {"ACCELERATE_USE_FSDP": "fsdp2", "ACCELERATE_USE_DEEPSPEED": "zero2"}
        for variable, strategy in known.items():
            if ranks > 1 and asked_for(variable):
                return cls(strategy, ranks)
        return cls("ddp", ranks)

    def require_flags(self, args: PPOConfig, *, quantized: bool) -> None:
        """Raise `InputError` for flags that the trainer refuses under this strategy.

        `quantized` is a base of 4 or 8 bits.
        """
        if self.strategy == "fsdp2":
            require_flags_of_fsdp(args)
            require_shardable_base(quantized=quantized)
            require_shardable_optimizer(OptimizerNames(args.optim).value)
        if self.strategy == "zero2":
            require_flags_of_deepspeed(args)

    @property
    def shards_weights(self) -> bool:
        """True if each rank holds a shard of the weights."""
        return self.strategy == "fsdp2" and self.ranks > 1

    def frozen(self, weights: float) -> float:
        """Return the bytes of frozen `weights` (bytes) on a rank."""
        return weights / self.ranks if self.shards_weights else weights

    def trained(self, count: int, *, weights_are_base: bool) -> float:
        """Return the bytes of `count` trained fp32 weights on a rank, with gradients and the two moments of Adam.

        With `weights_are_base`, they are weights of the base, and counted there already.
        """
        weights = 0 if weights_are_base else 4
        if self.ranks == 1:
            return count * (weights + 4 + 8)
        if self.strategy == "fsdp2":
            return count * (weights + 4 + 8) / self.ranks
        if self.strategy == "zero2":  # which keeps an fp32 copy of what it updates
            return count * (weights + (4 + 4 + 8) / self.ranks) + 4 * min(count, _BUCKET)
        return count * (weights + 4 + 8 + 4)  # DDP sums gradients in buckets

    def gathered(self, weights: float, root: float, layers: int, *, blocks: bool) -> float:
        """Return the bytes of `weights` (bytes) that a rank gathers.

        They are all, or without `blocks` the root's and those of a few blocks.
        """
        if not self.shards_weights:
            return 0.0
        return weights if blocks else root + (weights - root) / layers * _BLOCKS_AT_ONCE
