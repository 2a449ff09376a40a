"""The experience of one iteration, and its split into minibatches and micro-batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from hf_rlhf.distributed import take_share
from hf_rlhf.ops.padding import lengths_to_mask, pad_sequences
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.exchange import Row, RowIndex, fetch_share
from hf_rlhf.ppo.prompts import TextStream
from hf_rlhf.rollout.sampling import row_seed
from hf_rlhf.types import Sequences, TokenSupport, Trajectory, trimmed_width


@dataclass(slots=True)
class Experience:
    """The completions of one iteration that this rank sampled, `B` of them. Tokens that do not count hold zeros.

    `hf_rlhf.distributed` has what a number over all ranks takes: `global_sum`, `global_mean`, `global_moments`.
    """

    sequences: Sequences
    kl_coef: float  # weight of the KL in this iteration
    scores: Tensor  # (B,) paid on the last counted token, 0 where unscored
    token_scores: Tensor  # (B, T) paid besides on each token
    logprobs: Tensor  # (B, T) of the policy that sampled, by the trainer's own forward pass
    sampler_logprobs: Tensor  # (B, T) of the same tokens, by the sampler
    reference_logprobs: Tensor  # (B, T)
    kl: Tensor  # (B, T) by the estimator of the run
    values: Tensor  # (B, T)
    entropy: Tensor  # (B, T)
    rewards: Tensor | None = None  # (B, T) score and KL penalty, token by token
    advantages: Tensor | None = None  # (B, T)
    returns: Tensor | None = None  # (B, T)

    @classmethod
    def from_trajectories(cls, trajectories: Sequence[Trajectory], kl_coef: float) -> "Experience":
        """Pad scored and evaluated trajectories. One without a score stays, with none of its tokens counted."""
        sequences = Sequences.from_trajectories(trajectories, scored_only=True)

        def padded(rows: Sequence[Any]) -> Tensor:
            assert all(row is not None for row in rows), "evaluate the policy before making experience"
            width = sequences.mask.shape[1]
            return pad_sequences(rows, 0.0, dtype=torch.float32, min_length=width) * sequences.mask

        def column(name: str) -> Tensor:
            return padded([getattr(trajectory, name) for trajectory in trajectories])

        return cls(
            sequences,
            kl_coef,
            scores=torch.tensor([trajectory.score or 0.0 for trajectory in trajectories]),
            token_scores=padded([[] if each.token_scores is None else each.token_scores for each in trajectories]),
            logprobs=column("logprobs"),
            sampler_logprobs=padded([each.completion.logprobs or each.logprobs for each in trajectories]),
            reference_logprobs=column("reference_logprobs"),
            kl=column("kl"),
            values=column("values"),
            entropy=column("entropy"),
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
            self.kl_coef,
            **{name: t[rows, :width] if t.dim() == 2 else t[rows] for name, t in tensors.items()},
        )

    def row(self, b: int) -> Row:
        """Completion `b` without padding, as tensors that may travel to another rank."""
        sequences, width = self.sequences, trimmed_width(self.mask[b : b + 1])
        of_row = None if sequences.support is None else sequences.support[b]
        support = None if of_row is None else TokenSupport.of(of_row)
        columns = [getattr(self, name) for name in _TENSORS]
        return [
            sequences.prompt_lengths[b : b + 1],
            sequences.input_ids[b, : sequences.attention_mask[b].sum()].int(),
            sequences.mask[b, :width],
            None if support is None else support.counts,
            None if support is None else support.ids,
            *(None if t is None else t[b : b + 1] if t.dim() == 1 else t[b, :width] for t in columns),
        ]

    @classmethod
    def from_rows(cls, rows: Sequence[Row], kl_coef: float) -> "Experience":
        """Pad what `row` gave."""
        prompt_lengths, ids, masks, counts, support, *columns = (
            list[Any](column) for column in zip(*rows, strict=True)
        )
        lengths = torch.tensor([len(row) for row in ids])
        input_ids = pad_sequences(ids, 0, dtype=torch.long)
        sequences = Sequences(
            input_ids,
            lengths_to_mask(lengths, input_ids.shape[1]),
            torch.cat(prompt_lengths),
            pad_sequences(masks, False),
            [None if n is None else TokenSupport(flat, n) for flat, n in zip(support, counts, strict=True)],
        )
        tensors: dict[str, Any] = {
            name: torch.cat(column) if name == "scores" else pad_sequences(column, 0.0, dtype=column[0].dtype)
            for name, column in zip(_TENSORS, columns, strict=True)
            if column[0] is not None
        }
        return cls(sequences, kl_coef, **tensors)

    def to(self, device: torch.device | str) -> "Experience":
        """The same experience on `device`."""
        tensors = {name: tensor for name in _TENSORS if (tensor := getattr(self, name)) is not None}
        return Experience(
            self.sequences.to(device), self.kl_coef, **{name: tensor.to(device) for name, tensor in tensors.items()}
        )


_TENSORS = [field.name for field in fields(Experience) if field.name not in ("sequences", "kl_coef")]


@dataclass(slots=True)
class MicroBatch:
    """Experience and texts of one forward and backward pass on this rank."""

    experience: Experience
    minibatch_tokens: int  # counted tokens of the whole minibatch, over micro-batches and ranks
    texts: Sequences | None = None  # texts for the language-model loss besides
    minibatch_text_tokens: int = 0  # their counted tokens, over micro-batches and ranks


def micro_batches(
    experience: Experience, config: PPOConfig, iteration: int, texts: TextStream | None = None
) -> Iterator[MicroBatch]:
    """This rank's micro-batches of an iteration, in the order of the updates.

    Every PPO epoch shuffles the completions of all ranks anew. Within a minibatch a rank keeps those that it sampled,
    as far as shares are equal, and lays them out by length, so that micro-batches hold little padding. The sums of a
    minibatch do not depend on how it is dealt out.
    """
    lengths, counted = (mask.sum(dim=1) for mask in (experience.sequences.attention_mask, experience.mask))
    index = RowIndex.gather([experience.row(b) for b in range(len(experience))], lengths, counted)
    update = iteration * config.updates_per_iteration
    for epoch in range(config.num_ppo_epochs):
        shuffle = torch.Generator().manual_seed(row_seed(config.seed, "minibatches", iteration, epoch))
        for minibatch in torch.randperm(len(index), generator=shuffle).split(config.minibatch_size):
            rows = minibatch.tolist()
            share = fetch_share(rows, index, experience.row)
            tokens = sum(index.counted[row] for row in rows)
            text_batches, text_tokens = _text_batches(texts, update, config)
            size = config.per_device_train_batch_size
            parts = [share[start : start + size] for start in range(0, len(share), size)]
            for part, text_batch in zip(parts, text_batches, strict=True):
                yield MicroBatch(Experience.from_rows(part, experience.kl_coef), tokens, text_batch, text_tokens)
            update += 1


def _text_batches(texts: TextStream | None, update: int, config: PPOConfig) -> tuple[list[Sequences | None], int]:
    """One batch of texts for each of this rank's micro-batches of an update, and the tokens of all of them."""
    if texts is None:
        return [None] * config.gradient_accumulation_steps, 0
    rows = sorted(texts.rows(update), key=lambda row: len(row["prompt_ids"]) + len(row["completion_ids"]))
    share, size = take_share(rows), config.per_device_train_batch_size
    batches: list[Sequences | None] = [
        Sequences.from_ids([row["prompt_ids"] for row in part], [row["completion_ids"] for row in part])
        for part in (share[start : start + size] for start in range(0, len(share), size))
    ]
    return batches, sum(len(row["completion_ids"]) for row in rows)


class ExperienceLoader:
    """The iterable that `transformers.Trainer` takes for its data loader: micro-batches, made when they are asked for.

    Args:
        config: of the run.
        updates_per_pass: optimizer updates of one pass over the prompts; None when unknown.
        next_iteration: number of the iteration to make next, from the updates done so far.
        make_micro_batches: from an iteration's number to its micro-batches; None stands for one that is not learned
            from.
    """

    def __init__(
        self,
        config: PPOConfig,
        updates_per_pass: int | None,
        *,
        next_iteration: Callable[[], int],
        make_micro_batches: Callable[[int], Iterator[MicroBatch | None]],
    ):
        self.config = config
        self.updates_per_pass = updates_per_pass
        self.next_iteration = next_iteration
        self.make_micro_batches = make_micro_batches

    def __len__(self) -> int:
        """Micro-batches of one pass over the prompts, rounded up to whole iterations."""
        if self.updates_per_pass is None:
            raise TypeError("a stream of prompts has no length")
        return self.updates_per_pass * self.config.gradient_accumulation_steps

    def __iter__(self) -> Iterator[dict[str, MicroBatch | None]]:
        """One iteration after the other, without an end."""
        while True:
            for batch in self.make_micro_batches(self.next_iteration()):
                yield {"micro_batch": batch}


def require_finite(trajectories: list[Trajectory]) -> None:
    """Raise `FloatingPointError` for NaN or infinity among the log-probabilities and values that were computed."""
    for trajectory in trajectories:
        for name in ("logprobs", "reference_logprobs", "kl", "values"):
            numbers = getattr(trajectory, name)
            if numbers is not None and not torch.isfinite(numbers).all():
                raise FloatingPointError(
                    f"{name} of a completion hold NaN or infinity, so the weights are damaged or the dtype overflows"
                    f"\n  prompt: {str(trajectory.prompt)[:300]!r}\n  completion: {trajectory.text[:300]!r}"
                )
