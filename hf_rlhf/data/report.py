"""The data report, printed before a run starts: rows, how many were skipped and why, lengths, examples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_rlhf.credentials import printable
from hf_rlhf.data.rows import BadRow, LoadedRows, list_by_problem
from hf_rlhf.data.tokens import ROW_OPTIONS, begin_already

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from hf_rlhf.data.preferences import PreferenceReport

REPORT_FILE = "data_report.json"
MEASURED_ROWS = 2000
"""Pairs or texts whose tokens are counted; of a larger set, as many that are spread evenly over it."""

_EXAMPLES, _EXAMPLE_CHARACTERS = 2, 100
BEGUN = "that begin with the BOS already; it is not added again"
NO_TURN = "of plain text, which the policy continues without its chat template (messages would be answered)"


class Limit(NamedTuple):
    """Most tokens of a row, by the name of its flag, and what becomes of longer ones."""

    name: str
    tokens: int | None
    then: str


@dataclass(frozen=True)
class Lengths:
    """Tokens of one part of the rows; `above` counts those of the `measured` ones that are over the limit."""

    part: str
    measured: int
    minimum: int
    median: int
    most: int  # 95 of 100 rows have at most so many
    maximum: int
    limit: Limit
    above: int

    @classmethod
    def of(cls, part: str, lengths: Sequence[int], limit: Limit) -> Lengths:
        """Sum up the token counts of some rows, one or more."""
        ordered, last = sorted(lengths), len(lengths) - 1
        above = sum(limit.tokens is not None and length > limit.tokens for length in lengths)
        middle, most = ordered[last // 2], ordered[round(last * 0.95)]
        return cls(part, len(lengths), ordered[0], middle, most, ordered[-1], limit, above)

    def __str__(self) -> str:
        text = f"tokens of {self.part}: {self.minimum} to {self.maximum}, median {self.median}, 95% up to {self.most}"
        if self.limit.tokens is None:
            return text
        over = f"{self.above} of {self.measured} rows {self.limit.then}" if self.above else "none"
        return f"{text}; above {self.limit.name}={self.limit.tokens}: {over}"


@dataclass(frozen=True)
class SetReport:
    """One set. `rows_read` = `rows` + `bad_rows` + all of `left_out`; what is only `noticed` stays in the set.

    Where groups of rated completions became pairs, these count pairs, but for the bad rows.
    """

    role: str
    source: str
    layout: str
    columns: list[str]
    row_options: list[str]  # those of `ROW_OPTIONS` that the chat template gets
    other_columns: list[str]
    rows_read: int
    rows: int
    bad_rows: list[BadRow]
    left_out: dict[str, int]
    noticed: dict[str, int]
    lengths: list[Lengths]
    examples: list[dict[str, str]] = field(default_factory=list)
    others_are: str = "not used"  # what becomes of the other columns
    counted: str = "rows"  # what `rows_read` and `rows` count
    notes: list[str] = field(default_factory=list)  # how the rows became those that are used

    def __str__(self) -> str:
        others = f"; {self.others_are}: {', '.join(self.other_columns)}" if self.other_columns else ""
        options = f"; for the chat template: {', '.join(self.row_options)}" if self.row_options else ""
        lines = [
            f"{self.role}: {self.source}, {self.rows} of {self.rows_read} {self.counted} [{self.layout}]",
            f"columns: {', '.join(self.columns)}{options}{others}",
            *self.notes,
            *(f"skipped, as skip_bad_rows allows: {line}" for line in list_by_problem(self.bad_rows)),
            *(f"skipped: {count} {what}" for what, count in self.left_out.items() if count),
            *(f"kept: {count} {what}" for what, count in self.noticed.items() if count),
            *map(str, self.lengths),
            *("e.g. " + " | ".join(f"{name}: {text}" for name, text in row.items()) for row in self.examples[:1]),
        ]
        return "\n  ".join(lines)


@dataclass(frozen=True)
class DataReport:
    """All sets of a run. `shared` counts what evaluation and training have in common."""

    sets: list[SetReport]
    shared: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        leaks = [f"WARNING: {count} {what}" for what, count in self.shared.items() if count]
        return "\n".join([*map(str, self.sets), *leaks])

    def write(self, folder: Path) -> None:
        """Write data_report.json."""
        folder.mkdir(parents=True, exist_ok=True)
        content = asdict(self)
        for each, report in zip(content["sets"], self.sets, strict=True):
            each["bad_rows"] = [row._asdict() for row in report.bad_rows]
            for length, lengths in zip(each["lengths"], report.lengths, strict=True):
                length["limit"] = lengths.limit._asdict()
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / REPORT_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")


def report_set(
    rows: LoadedRows,
    prepared: Mapping[str, Sequence[Any]],
    rows_read: int,
    *,
    columns: Sequence[str],
    shown: Sequence[str] | None = None,
    **found: Any,
) -> SetReport:
    """Report on a set.

    Args:
        rows: as they were read, with the bad ones that were found since.
        prepared: the columns of the rows that are left.
        rows_read: how many there were, before any was found to be bad.
        columns: those that the stage uses.
        shown: those that the examples show, by default all of `columns` that are left.
        found: the other fields of `SetReport`.
    """
    shown = shown or [name for name in columns if name in prepared]
    conversational = isinstance(prepared[shown[-1]][0], list)
    options = [name for name in ROW_OPTIONS if name in rows.dataset.column_names and conversational]
    others = [name for name in rows.dataset.column_names if name not in (*columns, *options)]
    count = len(prepared[shown[0]])
    return SetReport(
        source=printable(rows.source),
        columns=list(columns),
        row_options=options,
        other_columns=[printable(name, 100) for name in others],
        rows_read=rows_read,
        rows=count,
        bad_rows=[BadRow(printable(row.place), row.problem) for row in rows.bad_rows.found],
        examples=[
            {name: printable(_as_text(prepared[name][row]), _EXAMPLE_CHARACTERS) for name in shown}
            for row in range(min(_EXAMPLES, count))
        ],
        **found,
    )


def count_left_out(pairs: PreferenceReport | None, kept: int, repeats: str) -> dict[str, int]:
    """Return why pairs are not among those `kept`: where not malformed and not equal, they are there already."""
    if pairs is None:
        return {}
    reasons = {f"malformed: {reason}": count for reason, count in pairs.malformed_reasons.items()}
    reasons["with chosen equal to rejected"] = pairs.identical
    reasons |= {"with equal ratings": pairs.ties} if pairs.ties else {}
    return reasons | {repeats: pairs.rows_in - kept - sum(reasons.values())}


def measured_rows(count: int) -> list[int]:
    """Return at most `MEASURED_ROWS` of so many rows, spread evenly."""
    step = max(count / MEASURED_ROWS, 1)
    return [int(number * step) for number in range(min(count, MEASURED_ROWS))]


def begun(columns: Sequence[Sequence[Any]], tokenizer: PreTrainedTokenizerBase) -> int:
    """Count the rows that have a text that begins with the tokenizer's BOS in one of these columns."""
    if not isinstance(columns[0][0], str):
        return 0
    return sum(map(any, zip(*(begin_already(texts, tokenizer) for texts in columns), strict=True)))


def select_for_trl(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """Select the columns of a stage: trl would take `messages` or `input_ids` beside them for another layout."""
    return dataset.select_columns([n for n in (*names, *ROW_OPTIONS) if n in dataset.column_names])


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return " / ".join(f"{message.get('role')}: {message.get('content')}" for message in value)
    return str(value)
