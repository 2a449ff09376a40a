"""The rows of each iteration or update: endless streams that a resume enters at any point, with no state to save."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any, TypeVar

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor

from hf_rlhf.distributed import take_share
from hf_rlhf.errors import InputError
from hf_rlhf.rollout.sampling import row_seed

Row = Mapping[str, Any]
T = TypeVar("T")


def prompt_stream(
    dataset: Dataset | IterableDataset, batch_size: int, seed: int
) -> "ShuffledPrompts | StreamedPrompts":
    """Return the prompts of a run, `batch_size` per iteration over all ranks. A streamed set keeps its own order."""
    if isinstance(dataset, IterableDataset):
        return StreamedPrompts(dataset, batch_size)
    return ShuffledPrompts(dataset, batch_size, seed)


def repeated(rows: Sequence[T], count: int) -> list[T]:
    """Return each row `count` times, in a group."""
    return [row for row in rows for _ in range(count)]


class ShuffledRows:
    """Rows of a loaded set, shuffled anew for each pass: a function of the seed and the number of the batch.

    A batch may reach into the next pass and meet a row again; a set smaller than a batch gives rows repeatedly.
    """

    purpose: str  # sets apart the orders of two streams of one run

    def __init__(self, dataset: Dataset, batch_size: int, seed: int):
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed

    def rows(self, number: int) -> list[Row]:
        """Return the rows of batch `number`, over all ranks."""
        positions = range(number * self.batch_size, (number + 1) * self.batch_size)
        length = len(self.dataset)
        orders = {n: self._order(n) for n in range(positions[0] // length, positions[-1] // length + 1)}
        return [self.dataset[int(orders[position // length][position % length])] for position in positions]

    def _order(self, number: int) -> Tensor:
        """Return every row number once, for pass `number`."""
        generator = torch.Generator().manual_seed(row_seed(self.seed, self.purpose, number))
        return torch.randperm(len(self.dataset), generator=generator)


class ShuffledPrompts(ShuffledRows):
    """The prompts of a loaded set, a batch for each iteration."""

    purpose = "prompts"

    def rows(self, number: int) -> list[Row]:
        """Return this rank's share of iteration `number`: prompts p of the batch with p % world_size equal to rank."""
        return take_share(super().rows(number))


class TextStream(ShuffledRows):
    """The texts of PPO-ptx, a batch for each optimizer update, over all ranks."""

    purpose = "ptx"


class StreamedPrompts:
    """Prompts of an `IterableDataset`, in the order in which it gives them; after its end, a new pass begins.

    Iteration i takes rows i * batch_size to (i + 1) * batch_size - 1, counted over all passes. A set shuffled with
    `dataset.shuffle(seed=...)` is shuffled anew for each pass; it needs a seed, or a resume meets another order.
    Every rank reads the whole stream and keeps its share: so all agree on the order without a word between them.
    """

    def __init__(self, dataset: IterableDataset, batch_size: int):
        self.dataset = dataset
        self.batch_size = batch_size
        self._next_iteration: int | None = None  # the one that `_stream` stands before
        self._stream: Iterator[Row] = iter(())

    def rows(self, iteration: int) -> list[Row]:
        """Return this rank's share of `iteration`: prompts p of the batch with p % world_size equal to its rank.

        Any iteration but the next one reads the stream again from its first row.

        Raises InputError when a pass over the set gives fewer rows than an iteration takes.
        """
        if iteration != self._next_iteration:
            self._stream = islice(self._passes(), iteration * self.batch_size, None)
        self._next_iteration = None  # a stream that raises is not read on
        rows = list(islice(self._stream, self.batch_size))
        self._next_iteration = iteration + 1
        return take_share(rows)

    def _passes(self) -> Iterator[Row]:
        for number in count():
            self.dataset.set_epoch(number)
            rows = 0
            for row in self.dataset:
                rows += 1
                yield row
            if rows < self.batch_size:
                raise InputError(
                    f"pass {number + 1} over the streamed prompts gave {rows} rows, fewer than the {self.batch_size}"
                    ' of an iteration. Check the files and any filter; with overlong_prompts="filter", raise'
                    " max_prompt_length"
                )
