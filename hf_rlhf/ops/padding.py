"""Ragged sequences to rectangular tensors. Masks come from lengths, never from `ids != pad`."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor


def pad_sequences(
    sequences: Sequence[Sequence[int] | Sequence[float] | Tensor],
    padding_value: float,
    side: Literal["right", "left"] = "right",
    dtype: torch.dtype | None = None,
    min_length: int = 0,
) -> Tensor:
    """Pad `B` one-dimensional sequences to the longest of them, or to `min_length` if that is more: `(B, L)`.

    `side` is where the padding goes: "right" for completions, "left" for prompts that generation continues.
    Without `dtype`, the type is that of the first sequence that is not empty (int64 for lists of ints, float32 for
    lists of floats). Sequences may be empty; all empty gives `(B, 0)`.

    Raises ValueError for no sequences at all, another `side`, or a sequence that is not one-dimensional.
    """
    if side not in ("right", "left"):
        raise ValueError(f'side={side!r} is neither "right" nor "left"')
    if len(sequences) == 0:
        raise ValueError("pad_sequences got no sequences; a batch has at least one")
    tensors = [torch.as_tensor(sequence) for sequence in sequences]
    for index, tensor in enumerate(tensors):
        if tensor.ndim != 1:
            raise ValueError(f"sequence {index} has shape {tuple(tensor.shape)}; each must be one-dimensional")
    typed = next((tensor for tensor in tensors if len(tensor)), None)
    if dtype is None:
        dtype = typed.dtype if typed is not None else torch.int64 if isinstance(padding_value, int) else torch.float32
    length = max(min_length, *map(len, tensors))
    padded = torch.full((len(tensors), length), padding_value, dtype=dtype, device=tensors[0].device)
    for row, tensor in zip(padded, tensors, strict=True):
        if side == "right":
            row[: len(tensor)] = tensor
        else:
            row[length - len(tensor) :] = tensor
    return padded


def lengths_to_mask(lengths: Tensor, length: int) -> Tensor:
    """Return the mask of right-padded rows, `mask[b, t] = t < lengths[b]`: `(B, L)`, bool, with `L = length`.

    Raises ValueError when a length is below 0 or above `length`: the mask would count fewer tokens than there are.
    """
    if lengths.ndim != 1:
        raise ValueError(f"lengths has shape {tuple(lengths.shape)}; expected (B,)")
    if len(lengths) and (int(lengths.min()) < 0 or int(lengths.max()) > length):
        raise ValueError(f"lengths {lengths.tolist()} do not fit in rows of {length} tokens")
    return torch.arange(length, device=lengths.device) < lengths[:, None]
