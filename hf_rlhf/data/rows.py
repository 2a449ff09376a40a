"""Rows as they were read: where each stands, which cannot be used, and the checks that every set passes."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_rlhf.credentials import printable
from hf_rlhf.data.json_columns import keep_own_keys, read_values
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

_CHARACTERS = 500  # of a problem, as a chat template or a parser may quote the row


class BadRow(NamedTuple):
    """`place` is file:line, or a row's number where there are no lines."""

    place: str
    problem: str


class BadRows:
    """The bad rows of one set. `limit` of them may be skipped (`skip_bad_rows`); None where there is no such flag."""

    def __init__(self, limit: int | None = 0):
        if limit is not None and limit < 0:
            raise InputError(f"skip_bad_rows={limit} must be 0 (none is skipped) or above")
        self.limit = limit
        self.found: list[BadRow] = []

    def add(self, place: str, problem: str, cause: Exception | None = None) -> None:
        """Note one bad row. Raises InputError when it is one more than the limit, with the first ones."""
        self.found.append(BadRow(place, printable(problem, _CHARACTERS)))
        if len(self.found) <= (self.limit or 0):
            return
        if not self.limit:
            raise InputError(f"{place}: {self.found[-1].problem}") from cause
        rows = "\n  ".join(f"{row.place}: {row.problem}" for row in self.found[:5])
        raise InputError(
            f"{len(self.found)} rows cannot be used, and skip_bad_rows={self.limit} leaves out {self.limit}. The first"
            f" are\n  {rows}\nMend them, or raise skip_bad_rows"
        ) from cause

    def add_all(self, rows: Iterable[BadRow], *, source: str, total: int, rule: str = "") -> None:
        """Note what a look at all rows of a set has found. Raises InputError above the limit, by kind of problem.

        `rule` is a sentence about rows that can be used, for a set without lines to look at.
        """
        self.found += [BadRow(row.place, printable(row.problem, _CHARACTERS)) for row in rows]
        if len(self.found) <= (self.limit or 0):
            return
        problems = "\n  ".join(list_by_problem(self.found))
        if self.limit is None:
            raise InputError(
                f"{source}: values that cannot be used, in a set of {total} rows (rows count from 0):\n  {problems}\n"
                f"{rule}Mend these rows, or leave them out with dataset.filter(...)"
            )
        raise InputError(
            f"{source}: {len(self.found)} of {total} rows cannot be used, more than skip_bad_rows={self.limit} leaves"
            f" out:\n  {problems}\nMend them, or set skip_bad_rows to {len(self.found)} or more to leave them out"
        )


def list_by_problem(rows: Iterable[BadRow], shown: int = 5, kinds: int = 10) -> list[str]:
    """List the first `kinds` of problem: `column "chosen": None in 2 rows (a.jsonl:3, a.jsonl:7)`."""
    places: dict[str, list[str]] = {}
    for row in rows:
        places.setdefault(row.problem, []).append(row.place)
    lines = [f"{problem} in {list_rows(found, shown)}" for problem, found in places.items()]
    return lines if len(lines) <= kinds else [*lines[:kinds], f"and {len(lines) - kinds} other kinds of problems"]


def list_rows(rows: Sequence[int | str], shown: int = 5) -> str:
    """List row numbers or places for a message: `3 rows (0, 4, 9)`, the first few of many followed by an ellipsis."""
    numbers = ", ".join(str(row) for row in rows[:shown]) + (", ..." if len(rows) > shown else "")
    return f"{len(rows)} row{'s' if len(rows) != 1 else ''} ({numbers})"


@dataclass(frozen=True)
class LoadedRows:
    """One split as it was read: the rows, where each stands, and the bad ones that were skipped.

    `places` is None where rows have no lines; they are then told by their number. `columns` are those that `read` has
    read: a selection of the rows selects from them too, so that each value is read once.
    """

    dataset: Dataset
    source: str
    bad_rows: BadRows
    places: Sequence[str] | None = None
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @classmethod
    def given(cls, dataset: Any, *, source: str) -> LoadedRows:
        """Return a set that was given in Python, in which every bad row is an error.

        Raises InputError unless it is a `datasets.Dataset` with rows.
        """
        return cls(keep_own_keys(require_dataset(dataset, source=source)), source, BadRows(None))

    @property
    def rows_read(self) -> int:
        """Number of rows, and of the lines of the file that were none."""
        return len(self.dataset) + len(self.bad_rows.found)

    @property
    def counted(self) -> str:
        """Words for a message on what `place` counts from; empty where each place says it."""
        return ", counted from 0" if self.bad_rows.limit is None else ""

    def place(self, row: int) -> str:
        """Return the place of a row: `file:line`, or `row 3 (from 0)`; of a set that was given in Python, `3`."""
        if self.places is not None:
            return self.places[row]
        return str(row) if self.bad_rows.limit is None else f"row {row} (from 0)"

    def read(self, names: Sequence[str]) -> LoadedRows:
        """Return the same rows with these columns among `columns`."""
        missing = [name for name in names if name not in self.columns]
        columns = read_columns(self.dataset, missing, source=self.source) if missing else {}
        return replace(self, columns={**self.columns, **columns})

    def by_row(self) -> list[dict[str, Any]]:
        """Return every row as a dict of all columns; those that `read` has read are not read again."""
        columns = self.read(self.dataset.column_names).columns
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def select(self, rows: Sequence[int]) -> LoadedRows:
        """Return these rows alone."""
        return replace(
            self,
            dataset=self.dataset.select(rows),
            places=[self.place(row) for row in rows],
            columns={name: [values[row] for row in rows] for name, values in self.columns.items()},
        )

    def good(self, problems: Mapping[str, Sequence[str | None]], rule: str = "") -> list[int]:
        """Return the rows without a problem, and note the others: column -> a problem or None for each row.

        Raises InputError when the others are more than may be skipped, or when none is left; for `rule` see `BadRows`.
        """
        bad: dict[int, list[str]] = {}
        for column, found in problems.items():
            for row, problem in enumerate(found):
                if problem:
                    bad.setdefault(row, []).append(f'column "{column}": {problem}')
        every = None if self.bad_rows.limit is None else 1  # of a row that may be skipped, one problem is enough
        named = [BadRow(self.place(row), problem) for row, found in sorted(bad.items()) for problem in found[:every]]
        if named:
            self.bad_rows.add_all(named, source=self.source, total=self.rows_read, rule=rule)
        if named and len(bad) == len(self.dataset):
            raise InputError(
                f"{self.source}: no row is left; skip_bad_rows={self.bad_rows.limit} skipped all {len(bad)}"
            )
        return [row for row in range(len(self.dataset)) if row not in bad]

    def without(self, problems: Mapping[str, Sequence[str | None]], rule: str = "") -> LoadedRows:
        """Return the rows that are `good`."""
        good = self.good(problems, rule)
        return self if len(good) == len(self.dataset) else self.select(good)


# --- checks that every set passes --------------------------------------------------------------------------------


def require_dataset(dataset: Any, *, source: str) -> Dataset:
    """Raise InputError unless this is a `datasets.Dataset` with rows."""
    import datasets

    if isinstance(dataset, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        raise InputError(
            f"{source}: these are splits ({', '.join(map(str, dataset))}), not one set. Pass dataset[split]"
        )
    if isinstance(dataset, datasets.IterableDataset):
        raise InputError(f"{source}: a streamed set cannot be checked before training. Load it with streaming=False")
    if not isinstance(dataset, datasets.Dataset):
        raise InputError(f"{source}: expected a datasets.Dataset, got a {type(dataset).__name__}")
    if len(dataset) == 0:
        raise InputError(f"{source}: the set is empty (0 rows). Check the file, the split and any filter")
    return dataset


def require_columns(found: Sequence[str], names: Sequence[str], *, source: str, holds: str = "") -> None:
    """Raise InputError that names the columns of `names` missing among those `found`, and the closest found.

    `holds` is a sentence about the layout that the set has.
    """
    missing = [name for name in names if name not in found]
    if not missing:
        return
    hints = []
    for name in missing:
        close = difflib.get_close_matches(name, found, n=1, cutoff=0.5)
        hints += [f'Did you mean "{close[0]}"? Then use dataset.rename_column("{close[0]}", "{name}")'] if close else []
    which = " and ".join(f'"{name}"' for name in missing)
    raise InputError(
        f"{source}: no column {which}; columns found: {', '.join(found) or 'none'}. {' '.join(hints)}".rstrip() + holds
    )


def read_columns(dataset: Dataset, names: Sequence[str], *, source: str = "the set") -> dict[str, list[Any]]:
    """Return these columns as plain Python lists, whatever format is set on the dataset.

    JSON text is decoded, an image is bytes.

    Raises InputError for values that Python cannot hold, such as a date of the year 10,000.
    """
    import pyarrow as pa

    try:
        return read_values(dataset, names)
    except (pa.ArrowException, ArithmeticError, ValueError) as error:
        raise InputError(f"{source}: columns {', '.join(names)} hold values that cannot be read ({error})") from error


def require_rows(dataset: Sized, minimum: int, *, source: str, why: str) -> None:
    """Raise InputError when the set has fewer rows than one batch; `why` is the batch algebra behind `minimum`."""
    if len(dataset) < minimum:
        raise InputError(
            f"{source}: {len(dataset)} rows are fewer than the {minimum} that one batch takes ({why}). "
            f"Add {minimum - len(dataset)} rows or make the batch smaller"
        )


# --- equal rows --------------------------------------------------------------------------------------------------


def fingerprint(*values: Any) -> bytes:
    """Return a digest that is equal for equal prompts and answers.

    Keys of messages that are None do not count, as templates are not given them.
    """

    def without_none(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: item for key, item in value.items() if item is not None}
        return [without_none(item) for item in value] if isinstance(value, (list, tuple)) else value

    text = json.dumps(without_none(values), sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def fingerprints(columns: Mapping[str, Sequence[Any]], names: Sequence[str]) -> set[bytes]:
    """Return one digest for each different row of these columns; one that is not there is None in all rows."""
    nothing = [None] * len(next(iter(columns.values()), ()))
    return {fingerprint(*row) for row in zip(*(columns.get(name, nothing) for name in names), strict=True)}
