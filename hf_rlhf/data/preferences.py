"""Preference sets of every common layout, checked as a whole and turned into the TRL preference format.

Layouts whose rows are whole dialogues (HH text, implicit-prompt conversations) are split here, and a dialogue that
cannot be split, or does not hold the text prompt beside it, is dropped and counted. Layouts that name their prompt are
taken at their word: a bad value is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_rlhf.data.checks import value_problems
from hf_rlhf.data.dialogues import MalformedDialogue, Pair
from hf_rlhf.data.json_columns import make_dataset, put_beside
from hf_rlhf.data.layouts import IMPLICIT_TEXT, PREFERENCE_COLUMNS, TEXT, split_row
from hf_rlhf.data.pair_rows import PairRows, read_pairs
from hf_rlhf.data.prepared import PreparedSet
from hf_rlhf.data.report import BEGUN, Lengths, Limit, begun, count_left_out, measured_rows, report_set, select_for_trl
from hf_rlhf.data.rows import LoadedRows, fingerprint, list_rows, read_columns, require_columns
from hf_rlhf.data.shapes import KEPT
from hf_rlhf.data.tokens import (
    NOTHING,
    ROW_OPTIONS,
    RefusedByTemplate,
    chat_text,
    options_by_row,
    require_chat_template,
)
from hf_rlhf.data.training_rows import pair_ids
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class PreferenceReport:
    """Counts of the rows of a preference set: `rows_in = rows_out + malformed + identical + duplicates + ties`.

    `contradictions` counts pairs that are also there the other way round (A > B and B > A); both rows are kept.
    `malformed_reasons` maps each reason to its number of rows. Of groups of rated completions, the rows are all pairs
    of one group, and `ties` are those with equal ratings.
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
    ties: int = 0

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in self.malformed_reasons.items())
        dropped = [
            f"{self.malformed} malformed ({reasons})" if self.malformed else "",
            f"{self.identical} with chosen equal to rejected" if self.identical else "",
            f"{self.duplicates} duplicates" if self.duplicates else "",
            f"{self.ties} with equal ratings" if self.ties else "",
        ]
        summary = f"{self.source}: {self.rows_out} of {self.rows_in} pairs kept [{self.layout}]"
        summary += f"; dropped {', '.join(filter(None, dropped))}" if any(dropped) else ""
        return summary + (f"; {self.contradictions} contradictions kept" if self.contradictions else "")


class PreparedPreferences(NamedTuple):
    """`dataset` with the columns `prompt` (absent for implicit-prompt text), `chosen`, `rejected` and those it had."""

    dataset: Dataset
    report: PreferenceReport


def prepare_preferences(
    dataset: Dataset, *, source: str, rating_weights: Mapping[str, float] = NOTHING
) -> PreparedPreferences:
    """Check every row, then give the set in the TRL preference format with a report of what was dropped.

    Rows of the public formats (`public_formats.py`) are converted. For `rating_weights` see `in_shape`.

    Raises InputError for missing columns, for values that are None, empty or of the wrong kind (row numbers count
    from 0), for a `margin` that is no number, and when no row is left.
    """
    return prepare_loaded_preferences(LoadedRows.given(dataset, source=source), rating_weights)


def prepare_loaded_preferences(rows: LoadedRows, rating_weights: Mapping[str, float] = NOTHING) -> PreparedPreferences:
    """Like `prepare_preferences`, but of rows from a file, of which the bad ones that may be skipped are skipped."""
    rows, pairs, report = _keep(read_pairs(rows, rating_weights))
    return PreparedPreferences(_with_pairs(rows.dataset, pairs), report)


def prepare_preference_set(
    rows: LoadedRows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    role: str,
    limit: Limit,
    rating_weights: Mapping[str, float] = NOTHING,
) -> PreparedSet:
    """Check, split and report on pairs, for trl's `RewardTrainer`. Raises InputError as `prepare_preferences` does.

    A pair that the chat template refuses is a bad row too. The set keeps `margin`, `source` and SHP's
    `score_ratio`, where they are known.
    """
    source = rows.source
    read = read_pairs(rows, rating_weights)
    good, pairs, found = _keep(read, tokenizer)
    dataset = _with_pairs(good.dataset, pairs)
    names = [name for name in Pair._fields if name in dataset.column_names]
    prepared = {**good.columns, **{name: [getattr(pair, name) for pair in pairs] for name in names}}
    measured = measured_rows(len(pairs))
    lengths = _lengths(prepared, measured, tokenizer, source=source)
    _require_one_that_fits(prepared, lengths, tokenizer, limit, source=source)
    longer = sum(len(str(pairs[row].chosen)) > len(str(pairs[row].rejected)) for row in measured)
    margins = prepared.get("margin", ())
    contradicting = sum(margin < 0 for margin in margins)
    report = report_set(
        rows,
        prepared,
        found.rows_in + len(rows.bad_rows.found),
        role=role,
        layout=read.shaped.layout.taken_for(read.name),
        columns=read.columns,
        shown=names,
        left_out=count_left_out(found, len(pairs), "that are there already"),
        noticed={
            "that contradict another (the same answers the other way round)": found.contradictions,
            f"of {len(measured)} whose chosen answer is the longer one": longer,
            BEGUN: begun([prepared[name] for name in (names[:1] if "prompt" in names else names)], tokenizer),
            **({"whose margin is below 0: it contradicts the choice": contradicting} if contradicting else {}),
        },
        lengths=[Lengths.of(f"prompt and {name}", tokens, limit) for name, tokens in lengths.items()],
        counted="pairs" if read.groups else "rows",
        notes=read.notes(margins),
    )
    kept = [name for name in ("source", KEPT) if name in (*good.columns, *read.shaped.columns)]
    return PreparedSet(select_for_trl(dataset, (*PREFERENCE_COLUMNS, *kept)), report, good.place)


def _keep(
    read: PairRows, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[LoadedRows, list[Pair], PreferenceReport]:
    """Return what `keep_pairs` does of the pairs with good values, with the ties in the report."""
    rows, pairs, report = keep_pairs(_with_good_values(read.rows, read.layout), read.layout, tokenizer)
    return rows, pairs, replace(report, layout=read.name, rows_in=report.rows_in + read.ties, ties=read.ties)


def keep_pairs(
    rows: LoadedRows, layout: str, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[LoadedRows, list[Pair], PreferenceReport]:
    """Split each row once, and keep the first of equal pairs, with a report on the others.

    Args:
        rows: with their pairs read and checked.
        layout: how the pairs are written.
        tokenizer: its chat template has to take every pair; the others are bad rows. None asks no template.

    Raises InputError when no pair is left.
    """
    splits = [_split(row, layout) for row in rows.by_row()]
    if tokenizer is not None and layout not in (TEXT, IMPLICIT_TEXT):
        require_chat_template(tokenizer, source=rows.source)
        options = options_by_row(rows.columns)
        refused = [_refusal(split, own, tokenizer) for split, own in zip(splits, options, strict=True)]
        good = rows.good({"chosen": refused})
        rows, splits = (rows, splits) if len(good) == len(splits) else (rows.select(good), [splits[n] for n in good])

    counts, reasons = Counter[str](), Counter[str]()
    kept: dict[bytes, tuple[int, Pair]] = {}  # by fingerprint, in the order of the rows
    for row, (pair, own) in enumerate(zip(splits, options_by_row(rows.columns), strict=True)):
        if isinstance(pair, str):
            reasons[pair] += 1
            continue
        key = fingerprint(*pair, own)
        if pair.chosen == pair.rejected:
            counts["identical"] += 1
        elif key in kept:
            counts["duplicates"] += 1
        else:
            counts["contradictions"] += fingerprint(pair.prompt, pair.rejected, pair.chosen, own) in kept
            kept[key] = (row, pair)

    report = PreferenceReport(
        source=rows.source,
        layout=layout,
        rows_in=len(splits),
        rows_out=len(kept),
        identical=counts["identical"],
        duplicates=counts["duplicates"],
        contradictions=counts["contradictions"],
        malformed=reasons.total(),
        malformed_reasons=dict(reasons),
    )
    if not kept:
        raise InputError(f"{report}. No pair is left: every row needs two different answers to one prompt")
    numbers, pairs = zip(*kept.values(), strict=True)
    return rows.select(numbers), list(pairs), report


def _with_good_values(rows: LoadedRows, layout: str) -> LoadedRows:
    values = {name: rows.columns[name] for name in PREFERENCE_COLUMNS if name in rows.columns}
    return rows.without(value_problems(values, layout))


def _split(row: Mapping[str, Any], layout: str) -> Pair | str:
    """Split a checked row into a pair, or return the reason why that cannot be done."""
    try:
        return split_row(row, layout)
    except MalformedDialogue as error:
        return str(error)


def _refusal(pair: Pair | str, options: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the chat template's objection to a pair; None if it has none, and for malformed rows."""
    if isinstance(pair, str):
        return None
    before: Any = pair.prompt or []
    try:
        for answer in (pair.chosen, pair.rejected):
            if isinstance(answer, list):
                chat_text([*before, *answer], tokenizer, continued=False, options=options)
    except RefusedByTemplate as refusal:
        return str(refusal)
    return None


def _lengths(
    columns: Mapping[str, Sequence[Any]], rows: Sequence[int], tokenizer: PreTrainedTokenizerBase, *, source: str
) -> dict[str, list[int]]:
    """Return tokens of the prompt with each answer in these rows."""
    names = [name for name in (*Pair._fields, *ROW_OPTIONS) if name in columns]
    pairs = {name: [columns[name][row] for row in rows] for name in names}
    return {name: list(map(len, ids)) for name, ids in pair_ids(pairs, tokenizer, source=source).items()}


def _require_one_that_fits(
    columns: Mapping[str, Sequence[Any]],
    measured: Mapping[str, Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    limit: Limit,
    *,
    source: str,
) -> None:
    """Raise InputError when every pair is above the limit; all are looked at only when the `measured` ones are."""
    most, rows = limit.tokens, range(len(columns["chosen"]))
    if most is None or _any_fits(measured, most):
        return
    parts = (rows[start : start + 1000] for start in range(0, len(rows), 1000))
    if not any(_any_fits(_lengths(columns, part, tokenizer, source=source), most) for part in parts):
        raise InputError(
            f"{source}: all {len(rows)} pairs are longer than {limit.name}={most} tokens; raise {limit.name}"
        )


def _any_fits(lengths: Mapping[str, Sequence[int]], most: int) -> bool:
    return any(max(pair) <= most for pair in zip(*lengths.values(), strict=True))


def _with_pairs(dataset: Dataset, pairs: Sequence[Pair]) -> Dataset:
    """Return the rows with their pairs in front of every other column."""
    columns = {name: [getattr(pair, name) for pair in pairs] for name in Pair._fields}
    if pairs[0].prompt is None:
        del columns["prompt"]
    others = dataset.with_format(None).remove_columns([name for name in Pair._fields if name in dataset.column_names])
    made = make_dataset(columns)
    return put_beside(made, others) if others.column_names else made


# --- two sets ----------------------------------------------------------------------------------------------------


def check_no_leak(
    train: Dataset, test: Dataset, *, source: str = "the test set", place: Callable[[int], str] = str
) -> int:
    """Count the distinct prompts that two prepared sets share.

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
    """Return (prompts, pairs without their order) of a prepared set; no prompts for implicit-prompt text."""
    require_columns(dataset.column_names, ("chosen", "rejected"), source="a set to check for leaks")
    columns = read_columns(dataset, [name for name in ("prompt", "chosen", "rejected") if name in dataset.column_names])
    answers = zip(columns["chosen"], columns["rejected"], strict=True)
    unordered = [sorted(fingerprint(answer).hex() for answer in pair) for pair in answers]
    prompts = columns.get("prompt")
    pairs = [
        fingerprint(prompt, pair) for prompt, pair in zip(prompts or [None] * len(dataset), unordered, strict=True)
    ]
    return [fingerprint(prompt) for prompt in prompts or []], pairs
