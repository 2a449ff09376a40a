"""Rated groups: one prompt, several completions and a rating of each, for losses that compare or fit ratings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from hf_rlhf.data.prepared import PreparedSet
from hf_rlhf.data.report import Lengths, Limit, measured_rows, report_set, select_for_trl
from hf_rlhf.data.rows import LoadedRows, fingerprint, list_rows, read_columns, require_columns
from hf_rlhf.data.tokens import ROW_OPTIONS, with_row_options
from hf_rlhf.data.training_rows import group_ids
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RATING_COLUMNS = ["prompt", "completions", "ratings"]


def prepare_rated_groups(
    rows: LoadedRows, tokenizer: PreTrainedTokenizerBase, *, role: str, limit: Limit, labels: bool = False
) -> PreparedSet:
    """Check and report on rated groups; `labels` are ratings of 0 and 1 alone. Raises InputError for bad rows."""
    require_columns(rows.dataset.column_names, RATING_COLUMNS, source=rows.source, holds="rated groups")
    read = rows.rows_read
    names = with_row_options(RATING_COLUMNS, rows.dataset.column_names)
    loaded = rows.read(names)
    problems = [_problem(row, labels) for row in loaded.by_row()]
    good = loaded.without({"ratings": problems})
    measured = measured_rows(len(good.dataset))
    part = {name: [good.columns[name][row] for row in measured] for name in names}
    lengths = [len(ids) for group in group_ids(part, tokenizer, source=rows.source) for ids in group]
    report = report_set(
        good,
        good.columns,
        read,
        role=role,
        layout="rated groups",
        columns=RATING_COLUMNS,
        shown=["prompt"],
        left_out={},
        noticed={"completions": sum(map(len, good.columns["ratings"]))},
        lengths=[Lengths.of("prompt and completion", lengths, limit)],
    )
    return PreparedSet(select_for_trl(good.dataset, [*RATING_COLUMNS, *ROW_OPTIONS]), report, good.place)


def check_no_rated_leak(train: PreparedSet, test: PreparedSet, *, source: str) -> int:
    """Count the prompts that both sets share. Raises InputError for a group that is in both."""
    ours, theirs = (read_columns(each.dataset, ["prompt", "completions"]) for each in (train, test))
    known = set(map(fingerprint, ours["prompt"], ours["completions"]))
    groups = list(map(fingerprint, theirs["prompt"], theirs["completions"]))
    if leaked := [row for row, group in enumerate(groups) if group in known]:
        raise InputError(
            f"{list_rows(list(map(test.place, leaked)))} of {len(groups)} groups of {source} are in the training set"
            " too, so the test would measure memory. Remove them from one of the two, or split by prompt"
        )
    return len(set(map(fingerprint, ours["prompt"])) & set(map(fingerprint, theirs["prompt"])))


def _problem(row: dict[str, Any], labels: bool) -> str | None:
    prompt, completions, ratings = (row[name] for name in RATING_COLUMNS)
    if not isinstance(completions, list) or not isinstance(ratings, list) or len(completions) != len(ratings):
        return "is no list with one number for each of the completions"
    if not completions:
        return "has no completion"
    if any(type(each) is not type(prompt) for each in completions):
        return "belongs to completions that are not all text, or not all messages, as the prompt is"
    numbers = [isinstance(each, (int, float)) and math.isfinite(each) for each in ratings]
    if not all(numbers):
        return f"has {ratings[numbers.index(False)]!r}, which is no finite number"
    if labels and set(ratings) - {0, 1}:
        return f"has {next(each for each in ratings if each not in (0, 1))!r}, where labels are 0 or 1"
    return None
