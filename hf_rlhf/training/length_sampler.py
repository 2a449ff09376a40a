"""Rows of like length in one batch, in an order that depends on the seed and the epoch alone."""

from collections.abc import Iterator

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

COLUMNS_OF_IDS = ("input_ids", "chosen_ids", "rejected_ids")


class LengthSampler(Sampler[int]):
    """A sampler whose batches hold rows of like length, so that little of them is padding.

    Rows are shuffled, sorted within parts of up to 50 batches as `transformers.LengthGroupedSampler` does it, and the
    batches are shuffled again. The one with the longest row is first, so that too little memory shows at once. Unlike
    that sampler, it draws from no global generator: a resumed run and each rank know the order of an epoch.

    Args:
        lengths: tokens of each row.
        batch_size: rows of one update, of all ranks.
        seed: of the order, together with `epoch`.

    Attributes:
        epoch: the epoch whose order is next.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = torch.Generator().manual_seed(self.seed + self.epoch)
        rows = get_length_grouped_indices(self.lengths, self.batch_size, generator=rng)
        longest, *batches = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        whole = [batch for batch in batches if len(batch) == self.batch_size]
        order = torch.randperm(len(whole), generator=rng).tolist()
        for batch in (longest, *(whole[number] for number in order), *batches[len(whole) :]):
            yield from batch


def row_lengths(dataset: Dataset) -> list[int]:
    """Return the tokens of each row's longest text, of texts, pairs or groups that a trainer of trl prepared."""
    if "completions_ids" in dataset.column_names:
        return [max(map(len, group)) for group in dataset["completions_ids"]]
    columns = [map(len, dataset[name]) for name in COLUMNS_OF_IDS if name in dataset.column_names]
    return [max(lengths) for lengths in zip(*columns, strict=True)]
