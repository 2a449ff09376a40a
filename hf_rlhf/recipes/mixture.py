"""The datasets of a mixture, as a YAML file or the command line names them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from hf_rlhf.compat.names import unknown_name
from hf_rlhf.errors import InputError

_KINDS = {"path": (str,), "name": (str,), "split": (str,), "columns": (list,), "fraction": (int, float)}
_WORDS = {"columns": "a list of names", "fraction": "a number above 0"}


@dataclass
class MixtureDataset:
    """One dataset of a mixture, by the keys of trl's `DatasetConfig`.

    Args:
        path: a Hub name, folder or file.
        name: the configuration of a Hub dataset.
        split: the split to train on.
        columns: the only columns to read.
        fraction: its share of the mixture, in relation to the other fractions.
    """

    path: str
    name: str | None = None
    split: str = "train"
    columns: list[str] | None = None
    fraction: float | None = None

    @classmethod
    def of(cls, value: Any) -> "MixtureDataset":
        """Return the dataset that a mapping or a path describes. Raises `InputError` for unknown or wrong values."""
        if isinstance(value, cls):
            return value
        given: dict[str, Any] = {"path": value} if isinstance(value, str) else dict(value)
        for key in given:
            if key in ("data_files", "data_dir"):
                raise InputError(f"datasets: {key} is not taken here. Give the file or folder as path")
            if key not in _KINDS:
                raise InputError(unknown_name(str(key), [each.name for each in fields(cls)], "datasets"))
        given = {key: each for key, each in given.items() if each is not None}
        if not given.get("path"):
            raise InputError(f"datasets={given} is invalid: it has no path. Give a Hub name, a folder or a file")
        for key, each in given.items():
            if not isinstance(each, _KINDS[key]) or (key == "fraction" and not 0 < each < math.inf):
                raise InputError(
                    f"datasets: {key}={each!r} of {given['path']} is invalid: it must be {_WORDS.get(key, 'text')}"
                )
        return cls(**given)


def require_fractions(datasets: Sequence[MixtureDataset]) -> None:
    """Raise `InputError` where only some datasets have a fraction."""
    fractions = [each.fraction for each in datasets]
    if None in fractions and any(fractions):
        raise InputError("datasets: only some have a fraction. Give one to all of them, or to none")
