"""One set of several datasets, each with its share of the rows."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_rlhf.data.conversions import source_name
from hf_rlhf.data.json_columns import ROW_OPTIONS, make_dataset, put_beside
from hf_rlhf.data.prepared import PreparedSet, TokenizerState
from hf_rlhf.data.report import SetReport
from hf_rlhf.data.rows import fingerprint, fingerprints, read_columns
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

_READ = ("messages", "text", "prompt", "completion", "chosen", "rejected", "completions")


class Member(NamedTuple):
    """One dataset of a mixture. `fraction` is its share of the rows, in relation to those of the other datasets."""

    name: str
    fraction: float | None
    prepared: PreparedSet


def shares(rows: Sequence[int], fractions: Sequence[float | None]) -> list[int]:
    """Return how many rows of each dataset are used: the most with which the shares hold and no row is there twice.

    Like trl's `get_dataset`: with all fractions None, every row; otherwise round(fraction_i / sum * N) for the largest
    N that no dataset is too small for.
    """
    if any(fraction is None for fraction in fractions):
        return list(rows)
    given = [fraction or 0.0 for fraction in fractions]
    weights = [fraction / sum(given) for fraction in given]
    total = min(count / weight for count, weight in zip(rows, weights, strict=True))
    return [min(round(weight * total), count) for count, weight in zip(rows, weights, strict=True)]


def mix(members: Sequence[Member], *, seed: int) -> PreparedSet:
    """Return one set of all members, in their order, each with its share of rows drawn by `seed`.

    `source` is the name of its member for a row that names none. Any other column that a member lacks is None there.

    Raises InputError for members that cannot be one set, and for a share without a row.
    """
    read = _require_one_kind(members)
    sizes = [len(each.prepared.dataset) for each in members]
    used = shares(sizes, [each.fraction for each in members])
    drawn: list[list[int]] = []
    for number, (member, size, count) in enumerate(zip(members, sizes, used, strict=True)):
        if count == 0:
            raise InputError(
                f"datasets: the fraction of {member.name} leaves none of its {size} rows. Raise it, or omit the dataset"
            )
        drawn.append(sorted(random.Random(f"{seed} {number}").sample(range(size), count)))
    columns = _columns(members, drawn)
    places = [
        f"{each.name}: {each.prepared.place(row)}" for each, rows in zip(members, drawn, strict=True) for row in rows
    ]
    told = ["prompt"] if "completions" in read else read
    known = any(each.prepared.fingerprints for each in members)
    return PreparedSet(
        _dataset(columns),
        _report(members, drawn, {name: columns[name] for name in (*read, *ROW_OPTIONS) if name in columns}),
        places.__getitem__,
        members[0].prepared.made_with,
        _scored_lengths(members, drawn),
        frozenset(fingerprints(columns, [*told, *ROW_OPTIONS])) if known else frozenset(),
    )


def _require_one_kind(members: Sequence[Member]) -> list[str]:
    """Return the columns that a stage reads. Raises InputError where members differ in them, or in text and messages.

    Of prompts with token ids it is the prompt alone.
    """
    kinds: dict[str, str] = {}
    read: list[str] = []
    for each in members:
        dataset = each.prepared.dataset
        read = [name for name in _READ if name in dataset.column_names]
        read = ["prompt"] if "prompt_ids" in dataset.column_names else read
        first = dataset[0]
        held = [f"{name} ({'messages' if isinstance(first[name], list) else 'text'})" for name in read]
        kinds[each.name] = " and ".join(held)
    if len(set(kinds.values())) > 1:
        found = "; ".join(f"{name} has {kind}" for name, kind in kinds.items())
        raise InputError(f"datasets cannot be mixed: {found}. Give datasets of the same columns and kind")
    return read


def _columns(members: Sequence[Member], drawn: Sequence[Sequence[int]]) -> dict[str, list[Any]]:
    names = [name for each in members for name in each.prepared.dataset.column_names]
    columns: dict[str, list[Any]] = {name: [] for name in (*names, "source")}
    for member, rows in zip(members, drawn, strict=True):
        dataset = member.prepared.dataset.select(rows)
        read = read_columns(dataset, dataset.column_names, source=member.name)
        read["source"] = [source_name(each) or member.name for each in read.get("source", [None] * len(rows))]
        for name, values in columns.items():
            values.extend(read.get(name, [None] * len(rows)))
    return columns


def _dataset(columns: Mapping[str, Sequence[Any]]) -> Dataset:
    import pyarrow as pa

    made = {}
    for name, values in columns.items():
        try:
            made[name] = make_dataset({name: values})
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise InputError(
                f'datasets cannot be mixed: column "{name}" holds another kind of values in each ({error}). Rename or'
                " remove it in one of them"
            ) from error
    whole, *others = made.values()
    for other in others:
        whole = put_beside(whole, other)
    return whole


def _scored_lengths(
    members: Sequence[Member], drawn: Sequence[Sequence[int]]
) -> list[tuple[TokenizerState, list[int]]]:
    by_tokenizer = zip(*(each.prepared.scored_lengths for each in members), strict=True)
    return [
        (lengths[0][0], [one[1][row] for one, rows in zip(lengths, drawn, strict=True) for row in rows])
        for lengths in by_tokenizer
    ]


def _report(members: Sequence[Member], drawn: Sequence[Sequence[int]], read: Mapping[str, Sequence[Any]]) -> SetReport:
    sizes, used = [len(each.prepared.dataset) for each in members], [len(rows) for rows in drawn]
    keys = [fingerprint(*row) for row in zip(*read.values(), strict=True)]
    first = members[0].prepared.report
    with_margins = [each.prepared for each in members if "margin" in each.prepared.dataset.column_names]
    given = with_margins and all("margin" in each.report.columns for each in with_margins)
    return SetReport(
        role=first.role,
        source=f"a mixture of {len(members)} datasets",
        layout="mixture",
        columns=[*(name for name in read if name not in ROW_OPTIONS), *(["margin"] if given else [])],
        row_options=[name for name in read if name in ROW_OPTIONS],
        other_columns=[],
        rows_read=sum(sizes),
        rows=sum(used),
        bad_rows=[],
        left_out={
            f"of {each.name}, beyond its fraction {each.fraction:g}": size - count
            for each, size, count in zip(members, sizes, used, strict=True)
            if each.fraction is not None
        },
        noticed={"that are there already, in this dataset or another": len(keys) - len(set(keys))},
        lengths=[],
        counted=first.counted,
        notes=[
            f"{each.name}: {count} rows, {count / sum(used):.1%}" for each, count in zip(members, used, strict=True)
        ],
    )
