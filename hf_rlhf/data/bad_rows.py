"""Rows that cannot be used: each is named, up to a limit they are skipped, and one more is an error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hf_rlhf.credentials import printable
from hf_rlhf.errors import InputError

_CHARACTERS = 500  # of a problem, as a chat template or a parser may quote the row


class BadRow(NamedTuple):
    """`place` is file:line, or a row's number where there are no lines."""

    place: str
    problem: str


class BadRows:
    """The bad rows of one set. `limit` of them may be skipped (`skip_bad`)."""

    def __init__(self, limit: int = 0):
        if limit < 0:
            raise InputError(f"skip_bad={limit} must be 0 (none is left out) or above")
        self.limit = limit
        self.found: list[BadRow] = []

    def add(self, place: str, problem: str, cause: Exception | None = None) -> None:
        """Note one bad row. Raises InputError when it is one more than the limit, with the first ones."""
        self.found.append(BadRow(place, printable(problem, _CHARACTERS)))
        if len(self.found) <= self.limit:
            return
        if self.limit == 0:
            raise InputError(f"{place}: {self.found[-1].problem}") from cause
        rows = "\n  ".join(f"{row.place}: {row.problem}" for row in self._first())
        raise InputError(
            f"{len(self.found)} rows cannot be used, and skip_bad={self.limit} leaves out {self.limit}. The first"
            f" are\n  {rows}\nMend them, or raise skip_bad"
        ) from cause

    def add_all(self, rows: Iterable[BadRow], *, source: str, total: int) -> None:
        """Note what a look at all rows of a set has found. Raises InputError above the limit, by kind of problem."""
        self.found += [BadRow(row.place, printable(row.problem, _CHARACTERS)) for row in rows]
        if len(self.found) <= self.limit:
            return
        raise InputError(
            f"{source}: {len(self.found)} of {total} rows cannot be used, more than skip_bad={self.limit} leaves"
            " out:\n  "
            + "\n  ".join(list_by_problem(self.found))
            + f"\nMend them, or set skip_bad to {len(self.found)} or more to leave them out"
        )

    def _first(self, shown: int = 5) -> Sequence[BadRow]:
        return self.found[:shown]


def list_by_problem(rows: Iterable[BadRow], shown: int = 5, kinds: int = 10) -> list[str]:
    """`column "chosen": None in 2 rows (a.jsonl:3, a.jsonl:7)` for each kind of problem, the first `kinds` of them."""
    places: dict[str, list[str]] = {}
    for row in rows:
        places.setdefault(row.problem, []).append(row.place)
    lines = [
        f"{problem} in {len(found)} row{'s' if len(found) != 1 else ''} ({', '.join(found[:shown])}"
        + (", ...)" if len(found) > shown else ")")
        for problem, found in places.items()
    ]
    return lines if len(lines) <= kinds else [*lines[:kinds], f"and {len(lines) - kinds} other kinds of problems"]
