"""The experience of one iteration, and its split into minibatches and micro-batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_rlhf.distributed import global_sum, take_share
from hf_rlhf.errors import InputError
from hf_rlhf.models.policy import PolicyOutput
from hf_rlhf.ops.padding import lengths_to_mask, pad_sequences
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.exchange import Row, RowIndex, fetch_share
from hf_rlhf.ppo.prompts import TextStream
from hf_rlhf.rollout.sampling import row_seed
from hf_rlhf.types import ForwardPass, Reward, Score, Sequences, TokenSupport, Trajectory, trimmed_width


class Rollout(NamedTuple):
    """Completions that this rank sampled in one iteration, `B` of them, and the reward of each."""

    trajectories: list[Trajectory]
    rewards: list[Reward]


@dataclass(slots=True)
class Experience:
    """The completions of one iteration that this rank sampled, `B` of them. Tokens that do not count hold zeros.

    `hf_rlhf.distributed` has what a number over all ranks takes: `global_sum`, `global_mean`, `global_moments`.
    """

    sequences: Sequences
    kl_coef: float  # weight of the KL in this iteration
    scores: Tensor  # (B,) paid on the last counted token, 0 without a reward
    scores_per_token: Tensor  # (B, T) paid besides on each token
    logprobs: Tensor  # (B, T) of the policy that sampled, by the trainer's own forward pass
    sampler_logprobs: Tensor  # (B, T) of the same tokens, by the sampler
    reference_logprobs: Tensor  # (B, T)
    kl: Tensor  # (B, T) by the estimator of the run
    values: Tensor  # (B, T)
    entropy: Tensor  # (B, T)
    fitted_advantages: Tensor | None = None  # (B, T) by an advantage head, before the updates
    bootstrap: Tensor | None = None  # (B,) value beyond the last token: V(s) of a truncated episode, 0 of others
    per_token_rewards: Tensor | None = None  # (B, T) score and KL penalty laid out over tokens
    advantages: Tensor | None = None  # (B, T)
    returns: Tensor | None = None  # (B, T)

    @classmethod
    def from_rollout(
        cls,
        trajectories: Sequence[Trajectory],
        scores: Sequence[Score | None],
        passes: Sequence[ForwardPass],
        kl_coef: float,
    ) -> "Experience":
        """Pad `B` completions with their numbers. One without a score stays, with none of its tokens counted."""
        masks = [
            [False] * len(trajectory.completion.ids) if score is None else trajectory.completion_mask
            for trajectory, score in zip(trajectories, scores, strict=True)
        ]
        sequences = Sequences.from_trajectories(trajectories, masks)
        fitted = any(each.advantages is not None for each in passes)

        def padded(rows: Iterable[Any]) -> Tensor:
            width = sequences.mask.shape[1]
            return pad_sequences(list(rows), 0.0, dtype=torch.float32, min_length=width) * sequences.mask

        return cls(
            sequences,
            kl_coef,
            scores=torch.tensor([0.0 if score is None else score.last for score in scores]),
            scores_per_token=padded([] if s is None or s.per_token is None else s.per_token for s in scores),
            logprobs=padded(each.logprobs for each in passes),
            sampler_logprobs=padded(
                trajectory.completion.logprobs or each.logprobs
                for trajectory, each in zip(trajectories, passes, strict=True)
            ),
            reference_logprobs=padded(each.reference_logprobs for each in passes),
            kl=padded(each.kl for each in passes),
            values=padded(each.values for each in passes),
            entropy=padded(each.entropy for each in passes),
            fitted_advantages=padded(each.advantages for each in passes) if fitted else None,
        )

    @property
    def mask(self) -> Tensor:
        """`(B, T)` True where a sampled token counts."""
        return self.sequences.mask

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, rows: Tensor) -> "Experience":
        """Return the completions `rows`, with the padding that they do not need cut off."""
        width = trimmed_width(self.mask[rows])
        tensors = {name: tensor for name in _TENSORS if (tensor := getattr(self, name)) is not None}
        return Experience(
            self.sequences[rows],
            self.kl_coef,
            **{name: t[rows, :width] if t.dim() == 2 else t[rows] for name, t in tensors.items()},
        )

    def row(self, b: int) -> Row:
        """Return completion `b` without padding, as tensors that may travel to another rank."""
        sequences, width = self.sequences, trimmed_width(self.mask[b : b + 1])
        row_support = None if sequences.support is None else sequences.support[b]
        support = None if row_support is None else TokenSupport.of(row_support)
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
            pad_sequences(masks, False, dtype=torch.bool),
            [None if n is None else TokenSupport(flat, n) for flat, n in zip(support, counts, strict=True)],
        )
        tensors: dict[str, Any] = {
            name: torch.cat(column) if name in _BY_COMPLETION else pad_sequences(column, 0.0, dtype=column[0].dtype)
            for name, column in zip(_TENSORS, columns, strict=True)
            if column[0] is not None
        }
        return cls(sequences, kl_coef, **tensors)

    def to(self, device: torch.device | str) -> "Experience":
        """Return the same experience on `device`."""
        tensors = {name: tensor for name in _TENSORS if (tensor := getattr(self, name)) is not None}
        return Experience(
            self.sequences.to(device), self.kl_coef, **{name: tensor.to(device) for name, tensor in tensors.items()}
        )


_BY_COMPLETION = ("scores", "bootstrap")  # (B,), the others (B, T)
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
    """Yield this rank's micro-batches of an iteration, in the order of the updates.

    Every PPO epoch shuffles the completions of all ranks anew. Within a minibatch a rank keeps those that it sampled,
    as far as shares are equal, and lays them out by length, so that micro-batches hold little padding. The sums of a
    minibatch do not depend on how it is dealt out.
    """
    lengths, counted = (mask.sum(dim=1) for mask in (experience.sequences.attention_mask, experience.mask))
    index = RowIndex.gather(
        [experience.row(b) for b in range(len(experience))], lengths, counted, group=config.num_generations
    )
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
    """Return one batch of texts for each of this rank's micro-batches of an update, and the tokens of all of them."""
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
        """Return micro-batches of one pass over the prompts, rounded up to whole iterations."""
        if self.updates_per_pass is None:
            raise TypeError("a stream of prompts has no length")
        return self.updates_per_pass * self.config.gradient_accumulation_steps

    def __iter__(self) -> Iterator[dict[str, MicroBatch | None]]:
        """Yield one iteration after the other, without an end."""
        while True:
            for batch in self.make_micro_batches(self.next_iteration()):
                yield {"micro_batch": batch}


def split_by_completion(output: PolicyOutput, kl: Tensor, lengths: Sequence[int]) -> list[ForwardPass]:
    """Split the `(B, T)` columns of a batch into completions of `lengths` tokens, on the CPU."""

    def row(column: Any, b: int) -> Any:
        return None if column is None else column[b, : lengths[b]].cpu()

    return [
        ForwardPass(
            kl=row(kl, b),
            logprobs=row(output.logprobs, b),
            reference_logprobs=row(output.reference_logprobs, b),
            values=row(output.values, b),
            entropy=row(output.entropy, b),
            advantages=row(output.advantages, b),
        )
        for b in range(len(lengths))
    ]


def require_counted(mask: Tensor, iteration: int) -> None:
    """Raise `InputError` when no token `(B, T)` of an iteration counts, over all ranks; every rank takes part."""
    if not global_sum(mask.sum()):
        raise InputError(
            f"no completion of iteration {iteration + 1} has a reward and a token that counts, so there is nothing to"
            " learn. Return a number and not None for at least one completion, and do not mask all of its tokens."
        )


def require_finite(passes: Sequence[ForwardPass], trajectories: Sequence[Trajectory]) -> None:
    """Raise `FloatingPointError` for NaN or infinity among the log-probabilities and values that were computed."""
    for each, trajectory in zip(passes, trajectories, strict=True):
        for name in ("logprobs", "reference_logprobs", "kl", "values", "advantages"):
            numbers = getattr(each, name)
            if numbers is not None and not torch.isfinite(numbers).all():
                raise FloatingPointError(
                    f"{name} of a completion hold NaN or infinity, so the weights are damaged or the dtype overflows"
                    f"\n  prompt: {str(trajectory.prompt)[:300]!r}\n  completion: {trajectory.text[:300]!r}"
                )
