"""Preference sets of every common layout, checked as a whole and turned into the TRL preference format.

Layouts whose rows are whole dialogues (HH text, implicit-prompt conversations) are split here, and a dialogue that
cannot be split, or does not hold the text prompt beside it, is dropped and counted. Layouts that name their prompt are
taken at their word: a bad value is an error.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_rlhf.data.dialogues import (
    MalformedDialogue,
    Pair,
    is_empty,
    parse_hh,
    require_question,
    split_dialogues,
    with_question,
)
from hf_rlhf.data.json_columns import keep_own_keys, make_dataset, put_beside
from hf_rlhf.data.layouts import CONVERSATIONAL, HH, IMPLICIT_CONVERSATIONAL, layout_of
from hf_rlhf.data.rows import list_rows, read_columns, require_columns, require_dataset
from hf_rlhf.data.tokens import RefusedByTemplate, chat_text, options_by_row, with_row_options
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

PREFERENCE_COLUMNS = ("prompt", "chosen", "rejected", "margin")


@dataclass(frozen=True, slots=True)
class PreferenceReport:
    """Counts of the rows of a preference set: `rows_in = rows_out + malformed + identical + duplicates`.

    `contradictions` counts pairs that are also there the other way round (A > B and B > A); both rows are kept.
    `malformed_reasons` maps each reason to its number of rows.
    """

    source: str
    layout: str
    rows_in: int
    rows_out: int
    identical: int
    duplicates: int
    contradictions: int
    malformed: int
    malformed_reasons: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in self.malformed_reasons.items())
        dropped = [
            f"{self.malformed} malformed ({reasons})" if self.malformed else "",
            f"{self.identical} with chosen equal to rejected" if self.identical else "",
            f"{self.duplicates} duplicates" if self.duplicates else "",
        ]
        summary = f"{self.source}: {self.rows_out} of {self.rows_in} pairs kept [{self.layout}]"
        summary += f"; dropped {', '.join(filter(None, dropped))}" if any(dropped) else ""
        return summary + (f"; {self.contradictions} contradictions kept" if self.contradictions else "")


class PreparedPreferences(NamedTuple):
    """`dataset` with the columns `prompt` (absent for implicit-prompt text), `chosen`, `rejected` and those it had."""

    dataset: Dataset
    report: PreferenceReport


def prepare_preferences(dataset: Dataset, *, source: str) -> PreparedPreferences:
    """Check every row, then give the set in the TRL preference format with a report of what was dropped.

    Raises InputError for missing columns, for values that are None, empty or of the wrong kind (row numbers count
    from 0), for a `margin` that is no number, and when no row is left.
    """
    return prepare_with_rows(dataset, source=source)[0]


def prepare_with_rows(dataset: Dataset, *, source: str) -> tuple[PreparedPreferences, Sequence[int]]:
    """Like `prepare_preferences`, but also return the original number of each row that is left."""
    dataset = keep_own_keys(require_dataset(dataset, source=source))
    columns = read_preferences(dataset, source=source)
    layout = layout_of(dataset, source=source).pairs
    check_values(columns, layout, source=source)
    options = options_by_row(read_columns(dataset, with_row_options(["chosen"], dataset.column_names), source=source))

    counts, reasons = Counter[str](), Counter[str]()
    kept: dict[bytes, tuple[int, Pair]] = {}  # by fingerprint, in the order of the rows
    for row in range(len(dataset)):
        try:
            pair = split_row({name: values[row] for name, values in columns.items()}, layout)
        except MalformedDialogue as error:
            reasons[str(error)] += 1
            continue
        key = fingerprint(*pair, options[row])
        if pair.chosen == pair.rejected:
            counts["identical"] += 1
        elif key in kept:
            counts["duplicates"] += 1
        else:
            counts["contradictions"] += fingerprint(pair.prompt, pair.rejected, pair.chosen, options[row]) in kept
            kept[key] = (row, pair)

    report = PreferenceReport(
        source=source,
        layout=layout,
        rows_in=len(dataset),
        rows_out=len(kept),
        identical=counts["identical"],
        duplicates=counts["duplicates"],
        contradictions=counts["contradictions"],
        malformed=reasons.total(),
        malformed_reasons=dict(reasons),
    )
    if not kept:
        raise InputError(f"{report}. No pair is left: every row needs two different answers to one prompt")
    rows, pairs = zip(*kept.values(), strict=True)
    return PreparedPreferences(_with_pairs(dataset, rows, pairs), report), rows


def read_preferences(dataset: Dataset, *, source: str) -> dict[str, list[Any]]:
    """The columns of a preference set that are used, those that it has.

    Raises InputError without chosen and rejected.
    """
    dataset = require_dataset(dataset, source=source)
    if not {"chosen", "rejected"} <= set(dataset.column_names):
        holds = layout_of(dataset, source=source).sentence
        require_columns(dataset.column_names, ("chosen", "rejected"), source=source, holds=holds)
    return read_columns(dataset, [name for name in PREFERENCE_COLUMNS if name in dataset.column_names], source=source)


def check_no_leak(
    train: Dataset, test: Dataset, *, source: str = "the test set", place: Callable[[int], str] = str
) -> int:
    """Number of distinct prompts that two prepared sets share.

    Raises InputError when a pair (one prompt and its two answers, in either order) is in both sets; `place` says where
    a row of the test set stands.
    """
    train_prompts, train_pairs = _fingerprints(train)
    test_prompts, test_pairs = _fingerprints(test)
    known = set(train_pairs)
    leaked = [row for row, pair in enumerate(test_pairs) if pair in known]
    if leaked:
        raise InputError(
            f"{list_rows(list(map(place, leaked)))} of {len(test_pairs)} pairs of {source} are in the training set"
            " too, so the test would measure memory. Remove them from one of the two, or split by prompt"
        )
    return len(set(train_prompts) & set(test_prompts))


def _fingerprints(dataset: Dataset) -> tuple[list[bytes], list[bytes]]:
    """(prompts, pairs without their order) of a prepared set; no prompts for implicit-prompt text."""
    require_columns(dataset.column_names, ("chosen", "rejected"), source="a set to check for leaks")
    columns = read_columns(dataset, [name for name in ("prompt", "chosen", "rejected") if name in dataset.column_names])
    answers = zip(columns["chosen"], columns["rejected"], strict=True)
    unordered = [sorted(fingerprint(answer).hex() for answer in pair) for pair in answers]
    prompts = columns.get("prompt")
    pairs = [
        fingerprint(prompt, pair) for prompt, pair in zip(prompts or [None] * len(dataset), unordered, strict=True)
    ]
    return [fingerprint(prompt) for prompt in prompts or []], pairs


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


# --- rows -----------------------------------------------------------------------------------------------------


def template_problem(row: Mapping[str, Any], layout: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the chat template's objection to a checked row; None if it has none, and for malformed rows."""
    try:
        pair = split_row(row, layout)
        for answer in (pair.chosen, pair.rejected):
            if isinstance(answer, list):
                dialogue = [*(pair.prompt or []), *answer]
                chat_text(dialogue, tokenizer, continued=False, options=row)
    except MalformedDialogue:
        return None
    except RefusedByTemplate as refusal:
        return str(refusal)
    return None


def split_row(row: Mapping[str, Any], layout: str) -> Pair:
    """One checked row as a pair. Raises MalformedDialogue when whole dialogues cannot be split."""
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if layout == HH:
        pair = split_dialogues(parse_hh(chosen), parse_hh(rejected))
        if max(len(pair.chosen), len(pair.rejected)) > 1:
            raise MalformedDialogue("the dialogues part before the last answer")
        return pair
    if layout == IMPLICIT_CONVERSATIONAL:
        if not isinstance(prompt, str):
            return split_dialogues(chosen, rejected)
        pair = split_dialogues(with_question(chosen, prompt), with_question(rejected, prompt))
        require_question(pair.prompt, prompt)
        return pair
    return Pair(prompt, chosen, rejected)


# --- values ------------------------------------------------------------------------------------------------------


def value_problems(columns: Mapping[str, Sequence[Any]], layout: str) -> dict[str, list[str | None]]:
    """Return the problem with each value of each column, None for a valid one."""
    return {name: [_value_problem(value, name, layout) for value in values] for name, values in columns.items()}


def _value_problem(value: Any, column: str, layout: str) -> str | None:
    if column == "margin":
        return margin_problem(value)
    if layout == CONVERSATIONAL or (layout == IMPLICIT_CONVERSATIONAL and column != "prompt"):
        return messages_problem(value, may_end_empty=layout == IMPLICIT_CONVERSATIONAL)
    return text_problem(value)


def check_values(columns: Mapping[str, Sequence[Any]], layout: str, *, source: str) -> None:
    """Raise one InputError that lists every column's bad values with their rows."""
    problems = [line for name, found in value_problems(columns, layout).items() for line in list_problems(name, found)]
    if problems:
        total = len(columns["chosen"])
        raise InputError(
            f"{source}: values that cannot be used, in a set of {total} rows [{layout}] (rows count from 0):\n  "
            + "\n  ".join(problems)
            + "\nMend these rows, or leave them out with dataset.filter(...)"
        )


def list_problems(column: str, found: Iterable[str | None]) -> list[str]:
    """`column "chosen": None in 2 rows (3, 7)` for each kind of problem; None means no problem."""
    rows: dict[str, list[int]] = {}
    for row, problem in enumerate(found):
        if problem:
            rows.setdefault(problem, []).append(row)
    return [f'column "{column}": {problem} in {list_rows(numbers)}' for problem, numbers in rows.items()]


def text_problem(value: Any) -> str | None:
    if value is None:
        return "None"
    if not isinstance(value, str):
        return f"{type(value).__name__} instead of text"
    return None if value.strip() else "empty text"


def messages_problem(value: Any, *, may_end_empty: bool = False) -> str | None:
    if value is None:
        return "None"
    if not isinstance(value, list):
        return f"{type(value).__name__} instead of a list of messages"
    if not value:
        return "no messages"
    for message in value:
        if not (isinstance(message, Mapping) and isinstance(message.get("role"), str)):
            return 'a message without "role" and "content"'
        content = message.get("content")
        if not (isinstance(content, str) or (content is None and message.get("tool_calls"))):
            return 'a message whose "content" is not text'
    return "empty last message" if is_empty(value[-1]) and not may_end_empty else None


def margin_problem(value: Any) -> str | None:
    if value is None:
        return "None"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"{type(value).__name__} instead of a number"
    return None if math.isfinite(value) else str(value)


def _with_pairs(dataset: Dataset, rows: Sequence[int], pairs: Sequence[Pair]) -> Dataset:
    """The kept rows with their pairs in front of every other column."""
    columns = {name: [getattr(pair, name) for pair in pairs] for name in Pair._fields}
    if pairs[0].prompt is None:
        del columns["prompt"]
    others = dataset.with_format(None).select(rows)
    others = others.remove_columns([name for name in Pair._fields if name in dataset.column_names])
    made = make_dataset(columns)
    return put_beside(made, others) if others.column_names else made
