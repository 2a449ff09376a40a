"""What one iteration learns from, and how it is cut into minibatches and micro-batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from hf_rlhf.distributed import take_share
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.rollout.sampling import row_seed
from hf_rlhf.types import Sequences, Trajectory, trimmed_width


@dataclass(slots=True)
class Experience:
    """The completions of one iteration, over all ranks and the same on each. Tokens that do not count hold zeros."""

    sequences: Sequences
    scores: Tensor  # (B,), 0 where unscored
    logprobs: Tensor  # (B, T) of the policy that sampled
    reference_logprobs: Tensor  # (B, T)
    values: Tensor  # (B, T)
    entropy: Tensor  # (B, T)
    rewards: Tensor | None = None  # (B, T) score and KL penalty, token by token
    advantages: Tensor | None = None  # (B, T)
    returns: Tensor | None = None  # (B, T)

    @classmethod
    def from_trajectories(cls, trajectories: Sequence[Trajectory]) -> "Experience":
        """Pad scored and evaluated trajectories. One without a score stays, with none of its tokens counted."""
        sequences = Sequences.from_trajectories(trajectories, scored_only=True)

        def padded(rows: list[Tensor | None]) -> Tensor:
            columns = torch.zeros(sequences.mask.shape)
            for b, row in enumerate(rows):
                assert row is not None, "evaluate the policy before making experience"
                columns[b, : len(row)] = row
            return columns * sequences.mask

        return cls(
            sequences,
            scores=torch.tensor([trajectory.score or 0.0 for trajectory in trajectories]),
            logprobs=padded([trajectory.logprobs for trajectory in trajectories]),
            reference_logprobs=padded([trajectory.reference_logprobs for trajectory in trajectories]),
            values=padded([trajectory.values for trajectory in trajectories]),
            entropy=padded([trajectory.entropy for trajectory in trajectories]),
        )

    @property
    def mask(self) -> Tensor:
        """`(B, T)` True where a sampled token counts."""
        return self.sequences.mask

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, rows: Tensor) -> "Experience":
        """The completions `rows`, with the padding that they do not need cut off."""
        width = trimmed_width(self.mask[rows])
        tensors = {name: tensor for name in _TENSORS if (tensor := getattr(self, name)) is not None}
        return Experience(
            self.sequences[rows],
            **{name: t[rows, :width] if t.dim() == 2 else t[rows] for name, t in tensors.items()},
        )

    def to(self, device: torch.device | str) -> "Experience":
        """The same experience on `device`."""
        tensors = {name: tensor for name in _TENSORS if (tensor := getattr(self, name)) is not None}
        return Experience(self.sequences.to(device), **{name: tensor.to(device) for name, tensor in tensors.items()})


_TENSORS = [field.name for field in fields(Experience) if field.name != "sequences"]


@dataclass(slots=True)
class MicroBatch:
    """What one forward and backward pass sees on this rank."""

    experience: Experience
    minibatch_tokens: int  # counted tokens of the whole minibatch, over micro-batches and ranks


def micro_batches(experience: Experience, config: PPOConfig, iteration: int) -> Iterator[MicroBatch]:
    """This rank's micro-batches of an iteration, in the order of the updates.

    Every PPO epoch shuffles the completions of all ranks anew. Within a minibatch they are dealt out by length, so that
    ranks and micro-batches hold little padding; the sums of a minibatch do not depend on how it is dealt out.
    """
    lengths = experience.sequences.attention_mask.sum(dim=1)
    for epoch in range(config.num_ppo_epochs):
        shuffle = torch.Generator().manual_seed(row_seed(config.seed, "minibatches", iteration, epoch))
        for minibatch in torch.randperm(len(experience), generator=shuffle).split(config.minibatch_size):
            by_length = minibatch[lengths[minibatch].argsort(stable=True)]
            tokens = int(experience.mask[minibatch].sum())
            for rows in torch.tensor(take_share(by_length.tolist())).split(config.per_device_train_batch_size):
                yield MicroBatch(experience[rows], tokens)


class ExperienceLoader:
    """The iterable that `transformers.Trainer` takes for its data loader: micro-batches, made when they are asked for.

    Args:
        config: of the run.
        num_prompts: rows of the data set.
        next_iteration: number of the iteration to make next, from the updates done so far.
        make_experience: from an iteration's number to its experience.
    """

    def __init__(
        self,
        config: PPOConfig,
        num_prompts: int,
        *,
        next_iteration: Callable[[], int],
        make_experience: Callable[[int], Experience],
    ):
        self.config = config
        self.num_prompts = num_prompts
        self.next_iteration = next_iteration
        self.make_experience = make_experience

    def __len__(self) -> int:
        """Micro-batches of one pass over the prompts, rounded up to whole iterations."""
        iterations = -(-self.num_prompts // self.config.rollout_batch_size)
        return iterations * self.config.updates_per_iteration * self.config.gradient_accumulation_steps

    def __iter__(self) -> Iterator[dict[str, MicroBatch]]:
        """One iteration after the other, without an end."""
        while True:
            iteration = self.next_iteration()
            experience = self.make_experience(iteration)
            for batch in micro_batches(experience, self.config, iteration):
                yield {"micro_batch": batch}


def require_finite(trajectories: list[Trajectory]) -> None:
    """Raise `FloatingPointError` for NaN or infinity among log-probabilities and values."""
    for trajectory in trajectories:
        for name in ("logprobs", "reference_logprobs", "values"):
            if not torch.isfinite(getattr(trajectory, name)).all():
                raise FloatingPointError(
                    f"{name} of a completion hold NaN or infinity, so the weights are damaged or the dtype overflows"
                    f"\n  prompt: {str(trajectory.prompt)[:300]!r}\n  completion: {trajectory.text[:300]!r}"
                )
