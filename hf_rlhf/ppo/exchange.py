"""The exchange of completions: which rank learns from which, and how others' rows reach it, as bytes of tensors.

Every rank knows three numbers of every completion. So all come to the same shares, and know the length of every message
before it arrives.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_rlhf.distributed import Home, exchange, gather_rows, homes, rank, world_size

Row = Sequence[Tensor | None]
"""One-dimensional tensors of one completion, in an order that all rows share; None for what it lacks."""

UNEVEN = 0.05
"""Most tokens of a minibatch that a rank may have above the mean, as a share of it, before a row travels."""

_DTYPES = (
    torch.bool,
    torch.uint8,
    torch.uint16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)
_ABSENT = (-1, 0)


@dataclass(frozen=True, slots=True)
class RowIndex:
    """Table that every rank has of the `B` rows of an iteration, over all ranks and in the order of one process."""

    homes: list[Home]  # where each is
    lengths: list[int]  # tokens of prompt and completion
    counted: list[int]  # counted tokens
    sizes: list[int]  # bytes of its message

    @classmethod
    def gather(cls, rows: Sequence[Row], lengths: Tensor, counted: Tensor, group: int = 1) -> "RowIndex":
        """Make it of this rank's `b` rows, with `lengths` and `counted` tokens `(b,)` of each.

        Rows were dealt out in groups of `group`. Every rank takes part.
        """
        sizes = torch.tensor([packed_size(row) for row in rows], dtype=torch.long)
        ranks = torch.full_like(sizes, rank())
        table = gather_rows(torch.stack([ranks, lengths.long(), counted.long(), sizes], dim=1), group)  # (B, 4)
        rows_per_rank = table[:, 0].bincount(minlength=world_size()).tolist()
        return cls(homes(rows_per_rank, group), *table[:, 1:].T.tolist())

    def __len__(self) -> int:
        return len(self.homes)


def deal_out(rows: Sequence[int], index: RowIndex, ranks: int) -> list[list[int]]:
    """Give each rank as many of `rows`, as far as possible those that it holds; each share from short to long.

    A rank that holds too many gives its surplus away. Shares whose tokens differ by more than `UNEVEN` then swap rows,
    since the ranks wait for the longest share in every update and a row travels faster than it is learned from.
    """
    quota, length = len(rows) // ranks, index.lengths.__getitem__
    mean = sum(map(length, rows)) / ranks
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for row in sorted(rows, key=length):  # stable, so that all ranks come to the same order
        shares[index.homes[row].rank].append(row)
    excess = [sum(map(length, share)) - mean for share in shares]  # tokens above the mean
    surplus = []
    for number, share in enumerate(shares):
        while len(share) > quota:
            wanted = excess[number] / (len(share) - quota)
            row = min(share, key=lambda row: abs(length(row) - wanted))
            share.remove(row)
            excess[number] -= length(row)
            surplus.append(row)
    short = [number for number in range(ranks) if len(shares[number]) < quota]
    for row in sorted(surplus, key=length, reverse=True):
        taker = min(short, key=lambda number: excess[number] / (quota - len(shares[number])))
        shares[taker].append(row)
        excess[taker] += length(row)
        if len(shares[taker]) == quota:
            short.remove(taker)
    _even_out(shares, excess, length, UNEVEN * mean)
    return [sorted(share, key=length) for share in shares]


def _even_out(shares: list[list[int]], excess: list[float], length: Callable[[int], int], bound: float) -> None:
    """Swap rows of the longest and the shortest share until none is above the mean by more than `bound` tokens."""
    while max(excess) > bound:
        longest, shortest = excess.index(max(excess)), excess.index(min(excess))
        wanted = (excess[longest] - excess[shortest]) / 2
        pairs = itertools.product(shares[longest], shares[shortest])
        given, taken = min(pairs, key=lambda pair: abs(length(pair[0]) - length(pair[1]) - wanted))
        tokens = length(given) - length(taken)
        if not 0 < tokens < 2 * wanted:  # the larger of the two would not become smaller
            return
        shares[longest][shares[longest].index(given)] = taken
        shares[shortest][shares[shortest].index(taken)] = given
        excess[longest] -= tokens
        excess[shortest] += tokens


def fetch_share(rows: Sequence[int], index: RowIndex, row_at: Callable[[int], Row]) -> list[Row]:
    """Return this rank's share of `rows`, from short to long.

    The rows of it that other ranks hold travel. Every rank takes part.

    `row_at` gives a row of this rank by its place.
    """
    shares, here = deal_out(rows, index, world_size()), rank()
    moves = [(index.homes[row].rank, taker, row) for taker, share in enumerate(shares) for row in share]
    moves = [(holder, taker, row) for holder, taker, row in moves if holder != taker]
    arrived: dict[int, Row] = {}
    if moves:  # of which all ranks know
        outgoing: list[list[Tensor]] = [[torch.empty(0, dtype=torch.uint8)] for _ in shares]
        incoming: list[list[int]] = [[] for _ in shares]
        for holder, taker, row in moves:
            if holder == here:
                outgoing[taker].append(pack(row_at(index.homes[row].place)))
            elif taker == here:
                incoming[holder].append(row)
        sizes = [[index.sizes[row] for row in part] for part in incoming]
        received = exchange([torch.cat(messages) for messages in outgoing], [sum(part) for part in sizes])
        for part, row_sizes, messages in zip(incoming, sizes, received, strict=True):
            arrived |= dict(zip(part, map(unpack, messages.split(row_sizes)), strict=True))
    return [arrived[row] if row in arrived else row_at(index.homes[row].place) for row in shares[here]]


def packed_size(row: Row) -> int:
    """Return bytes of `pack(row)`."""
    return 8 * (1 + 2 * len(row)) + sum(tensor.nbytes for tensor in row if tensor is not None)


def pack(row: Row) -> Tensor:
    """Write a row as one uint8 tensor: the number of its tensors, dtype and length of each, and their bytes."""
    layout = [_ABSENT if tensor is None else (_DTYPES.index(tensor.dtype), len(tensor)) for tensor in row]
    header = torch.tensor([len(row), *(number for pair in layout for number in pair)])
    present = [tensor for tensor in row if tensor is not None]
    return torch.cat([tensor.contiguous().view(torch.uint8) for tensor in (header, *present)])


def unpack(message: Tensor) -> Row:
    """Read what `pack` wrote."""
    length = int(message[:8].clone().view(torch.long))  # a copy begins where any dtype may begin
    header, start = message[8 : 8 * (1 + 2 * length)].clone().view(torch.long), 8 * (1 + 2 * length)
    row: list[Tensor | None] = []
    for code, count in header.reshape(-1, 2).tolist():
        if (code, count) == _ABSENT:
            row.append(None)
            continue
        end = start + count * _DTYPES[code].itemsize
        row.append(message[start:end].clone().view(_DTYPES[code]))
        start = end
    return row
