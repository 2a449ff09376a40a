"""Two layouts of a batch's sequences before a model's blocks: padded to one length, or end to end in one row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_rlhf.types import Model


@dataclass(frozen=True)
class Row:
    """Sequences that lie end to end, and where their tokens are in a padded batch `(B, L)` of them."""

    lengths: list[int]
    longest: int  # L, a multiple of 16: oneDNN compiles each product for each size
    to_batch: Tensor  # (B L,) token of the row at each place of the batch; after a sequence's end, its last
    to_row: Tensor  # (N,) place in the batch of each token

    @classmethod
    def of(cls, lengths: list[int], device: torch.device) -> "Row":
        """Make the row of sequences of these lengths, none of them empty."""
        longest = -(-max(lengths) // 16) * 16
        counts = torch.tensor(lengths)
        places = torch.arange(longest)
        starts = counts.cumsum(dim=0) - counts
        to_batch = starts[:, None] + torch.minimum(places, counts[:, None] - 1)  # (B, L)
        to_row = (places < counts[:, None]).flatten().nonzero().squeeze(1)
        return cls(lengths, longest, to_batch.flatten().to(device), to_row.to(device))

    @property
    def alike(self) -> bool:
        """True if attention to a padded batch at once is faster: it is small, or mostly real tokens.

        Otherwise attention to one sequence after the other is faster.
        """
        return self.longest <= 32 or len(self.to_batch) * self.longest <= 2 * sum(length**2 for length in self.lengths)


@dataclass(frozen=True)
class BatchLayout:
    """A batch of `B` sequences as a backbone takes it.

    It has `(R, W)` places, `N` of which hold tokens and the others padding.
    """

    inputs: dict[str, Any]  # input_ids (R, W), and what the backbone has to know besides
    lengths: Tensor  # (B,) tokens of each sequence
    first: Tensor  # (B,) place of each sequence's first token, rows counted end to end; the others follow it

    def run(self, backbone: Model) -> Tensor:
        """Return the backbone's last hidden states `(R, W, H)`."""
        return backbone(**self.inputs, use_cache=False).last_hidden_state

    def take(self, states: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Return those `(N', H)` of `states` `(R, W, H)` at the tokens `columns` of the sequences `rows`."""
        return states.flatten(0, 1)[self.first[rows] + columns]

    def split(self, states: Tensor) -> list[Tensor]:
        """Cut `states` `(R, W, H)` into those `(L_b, H)` of each sequence, without padding."""
        return list(states.flatten(0, 1)[self._places].split(self.lengths.tolist()))

    def join(self, sequences: Sequence[Tensor]) -> Tensor:
        """Lay the states `(L_b, H)` of each sequence out as `(R, W, H)`; padding gets zeros."""
        states = torch.cat(list(sequences))
        shape = self.inputs["input_ids"].shape
        laid = states.new_zeros(shape.numel(), states.shape[-1])
        return laid.index_copy_(0, self._places, states).view(*shape, -1)

    @property
    def _places(self) -> Tensor:
        """`(N,)` of the tokens, in reading order."""
        before = self.lengths.cumsum(dim=0) - self.lengths  # tokens of the sequences before
        shift = (self.first - before).repeat_interleave(self.lengths)
        return shift + torch.arange(len(shift), device=shift.device)


def padded(input_ids: Tensor, attention_mask: Tensor) -> BatchLayout:
    """Lay a right-padded batch `(B, L)` out as it is."""
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask.long()}
    first = torch.arange(len(input_ids), device=input_ids.device) * input_ids.shape[1]
    return BatchLayout(inputs, attention_mask.sum(dim=1), first)


def packed(input_ids: Tensor, attention_mask: Tensor) -> BatchLayout:
    """Lay the sequences of a right-padded batch `(B, L)` out end to end, for a model with `packed_attention`."""
    lengths = attention_mask.sum(dim=1)
    first = lengths.cumsum(dim=0) - lengths
    places = attention_mask.bool().nonzero(as_tuple=True)
    each, ids, positions = lengths.tolist(), input_ids[places], places[1]
    if filling := _filling(each, ids.device):
        zeros = ids.new_zeros(sum(filling))
        each, ids, positions = each + filling, torch.cat([ids, zeros]), torch.cat([positions, zeros])
    inputs = {
        "input_ids": ids[None],
        "position_ids": positions[None],
        "attention_mask": attention_mask.new_ones(1, 1, 1, 1),  # of four axes, so that no mask is made of it
        "row": Row.of(each, ids.device),
    }
    return BatchLayout(inputs, lengths, first)


def _filling(lengths: list[int], device: torch.device) -> list[int]:
    """Return lengths of unused sequences that pad a row to a common width, on a CPU.

    oneDNN compiles each product for each number of rows, and keeps what it compiled. Widths are a sixteenth apart, or
    16.
    """
    if device.type != "cpu":
        return []
    tokens, longest = sum(lengths), max(lengths)
    whole, part = divmod(-tokens % max(16, 2 ** (tokens.bit_length() - 5)), longest)
    return [longest] * whole + [part] * (part > 0)


def backbone_of(model: Model) -> Model:
    """Return the part of a transformers model that ends in its last hidden states."""
    backbone = model.base_model
    return model.model if backbone is model else backbone  # Llama 4's text model names another than it has
