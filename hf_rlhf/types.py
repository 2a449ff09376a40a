"""Data that passes between the parts, and the one axis legend.

Axes: `B` sequences, `P` prompt tokens, `T` completion tokens, `L` tokens of the longest sequence of a batch, `N`
counted tokens of a batch laid end to end, `H` hidden size, `V` vocabulary, `K` tokens that a sampler allowed at a
position.

Masks are boolean and mean one thing everywhere: True where a sampled token counts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from torch import Tensor

from hf_rlhf.ops.padding import lengths_to_mask, pad_sequences


class Message(TypedDict):
    """One chat message, in the format of `tokenizer.apply_chat_template`."""

    role: str
    content: str


Prompt = str | list[Message]

Model = Any
"""A transformers model or a PEFT wrapper of one. Not `nn.Module`, which types every attribute as Tensor or Module."""


@dataclass(slots=True)
class Completion:
    """Completion that an engine sampled for one prompt."""

    ids: list[int]
    # Of the distribution that each token was drawn from, by the sampler's own arithmetic; or empty
    logprobs: list[float]
    stopped: bool  # ended by a stop token or stop string; False when the length limit cut it off
    # Per token, the ids (K,) that top-k, top-p or min-p left; None: the whole vocabulary
    support: Sequence[Tensor] | None = None


class TokenSupport(Sequence[Tensor]):
    """The ids that a sampler allowed at each of `T` tokens: a sequence of `T` tensors `(K,)`, held end to end in one.

    `T` tensors would take some 500 bytes each besides their ids.

    Args:
        ids: `(sum of K,)`, uint16 where all of them fit and int32 elsewhere.
        counts: `(T,)` int32, the `K` of each token.
    """

    __slots__ = ("counts", "ids")

    def __init__(self, ids: Tensor, counts: Tensor):
        self.ids = ids
        self.counts = counts

    @classmethod
    def of(cls, support: Sequence[Tensor]) -> "TokenSupport":
        """Lay `T` tensors `(K,)` end to end."""
        if isinstance(support, cls):
            return support
        counts = torch.tensor([len(ids) for ids in support], dtype=torch.int32)
        ids = torch.cat([torch.empty(0, dtype=torch.int32), *(ids.cpu().int() for ids in support)])
        narrow = len(ids) > 0 and ids.min() >= 0 and ids.max() < 2**16
        return cls(ids.to(torch.uint16) if narrow else ids, counts)

    def __len__(self) -> int:
        return len(self.counts)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.ids.int().split(self.counts.tolist()))

    def __getitem__(self, t):
        return list(self)[t]


@dataclass(slots=True)
class Trajectory:
    """One prompt with the completion sampled for it."""

    row: Mapping[str, Any]  # the dataset's row: `prompt` and every other column
    prompt_ids: list[int]
    completion: Completion
    text: str  # the answer: what the generation prompt began it with and the completion, special tokens omitted
    mask: list[bool] | None = None  # (T,) True where the policy sampled the token; None: everywhere
    # Of an environment, whose tokens stand among those of the completion:
    messages: list[Message] | None = None  # the dialogue behind the prompt; None: one answer, `text`
    spans: list[tuple[int, int]] | None = None  # first token and the one past the last of each completion; None: all
    env_rewards: Tensor | None = None  # (T,) float64, what it paid on each token
    truncated: bool = False  # a limit ended the episode, so the value beyond it is V(s) and not 0
    info: Mapping[str, float | str] = field(default_factory=dict)  # of its last turn

    @property
    def prompt(self) -> Prompt:
        """The prompt as the dataset gave it."""
        return self.row["prompt"]

    @property
    def completion_mask(self) -> list[bool]:
        """`(T,)` True where a sampled token takes part in the loss."""
        return [True] * len(self.completion.ids) if self.mask is None else self.mask


@dataclass(slots=True)
class Reward:
    """The reward of one completion: what the reward functions gave it, untouched."""

    total: float | None  # weighted sum of the parts; None: no reward, and then the completion does not count
    parts: dict[str, float | None] = field(default_factory=dict)  # by name, unweighted, its tokens added up
    per_token: Tensor | None = None  # (T,) float64, the part of `total` that was given token by token, if any
    extra: dict[str, Any] = field(default_factory=dict)  # what reward functions logged about this completion


@dataclass(slots=True)
class Score:
    """The score of one completion: the number PPO pays, which is the reward after scaling, clipping and penalties."""

    last: float  # paid on the last counted token
    per_token: Tensor | None = None  # (T,) paid besides on each token, where the reward was given by token

    @property
    def total(self) -> float:
        """All that PPO pays for the completion."""
        return self.last + (0.0 if self.per_token is None else self.per_token.double().sum().item())


@dataclass(slots=True)
class ForwardPass:
    """Numbers of one completion's tokens, computed by the trainer's own models without gradient: each `(T,)`."""

    kl: Tensor  # to the reference, by the estimator of the run
    logprobs: Tensor  # of the policy
    reference_logprobs: Tensor | None = None
    values: Tensor | None = None  # of the state before each token
    entropy: Tensor | None = None
    advantages: Tensor | None = None  # of each token, by an advantage head


@dataclass(slots=True)
class Sequences:
    """Prompts with completions as one right-padded batch. Moves with `.to(device)`, selects rows with `[rows]`."""

    input_ids: Tensor  # (B, L)
    attention_mask: Tensor  # (B, L) True on real tokens
    prompt_lengths: Tensor  # (B,)
    mask: Tensor  # (B, T)
    support: Sequence[Sequence[Tensor] | None] | None = None  # B times T tensors (K,)

    @classmethod
    def from_trajectories(
        cls, trajectories: "Sequence[Trajectory]", masks: Sequence[Sequence[bool]] | None = None
    ) -> "Sequences":
        """Pad `B` trajectories. `masks` default to their own completion masks."""
        return cls.from_ids(
            [trajectory.prompt_ids for trajectory in trajectories],
            [trajectory.completion.ids for trajectory in trajectories],
            [trajectory.completion_mask for trajectory in trajectories] if masks is None else masks,
            [trajectory.completion.support for trajectory in trajectories],
        )

    @classmethod
    def from_ids(
        cls,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        masks: Sequence[Sequence[bool]] | None = None,
        support: Sequence[Sequence[Tensor] | None] | None = None,
    ) -> "Sequences":
        """Pad `B` prompts and completions. `masks` default to every completion token counting."""
        lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
        ids = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
        input_ids = pad_sequences(ids, 0, dtype=torch.long)
        attention_mask = lengths_to_mask(torch.tensor(lengths), max(lengths))
        if masks is None:
            masks = [[True] * len(completion) for completion in completions]
        assert list(map(len, masks)) == list(map(len, completions)), "a mask has an entry for each sampled token"
        mask = pad_sequences(masks, False, dtype=torch.bool, min_length=1)
        prompt_lengths = torch.tensor([len(prompt) for prompt in prompts])
        if support is not None:
            support = [None if row is None else TokenSupport.of(row) for row in support]
        return cls(input_ids, attention_mask, prompt_lengths, mask, support)

    @classmethod
    def of_one_token(cls) -> "Sequences":
        """Return the smallest input of a forward pass, for a rank that has nothing and must not miss the pass."""
        return cls.from_ids([[0]], [[0]])

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, rows: Tensor) -> "Sequences":
        """Return the sequences `rows`, and cut off the padding that they do not need."""
        length = int(self.attention_mask[rows].sum(dim=1).max())
        return Sequences(
            self.input_ids[rows, :length],
            self.attention_mask[rows, :length],
            self.prompt_lengths[rows],
            self.mask[rows, : trimmed_width(self.mask[rows])],
            None if self.support is None else [self.support[int(row)] for row in rows],
        )

    def to(self, device: torch.device | str) -> "Sequences":
        """Return the same batch on `device`."""
        return Sequences(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.prompt_lengths.to(device),
            self.mask.to(device),
            self.support,
        )

    @property
    def counted(self) -> tuple[Tensor, Tensor]:
        """Row and completion column of every counted token, in reading order: two tensors `(N,)`."""
        rows, columns = self.mask.nonzero(as_tuple=True)
        return rows, columns

    def counted_support(self) -> list[Tensor | None] | None:
        """Return the allowed ids `(K,)` of each of the `N` counted tokens.

        None stands for a token at which nothing was cut off. If there is no other token, it stands for the whole list.
        """
        if self.support is None or all(row is None for row in self.support):
            return None
        rows, columns = self.counted
        by_row = [None if row is None else list(row) for row in self.support]
        return [
            None if (allowed := by_row[b]) is None else allowed[t]
            for b, t in zip(rows.tolist(), columns.tolist(), strict=True)
        ]


def trimmed_width(mask: Tensor) -> int:
    """Return the columns of `mask` `(B, T)` up to the last one with a True in it; at least 1."""
    columns = mask.any(dim=0).nonzero()
    return int(columns[-1]) + 1 if len(columns) else 1
