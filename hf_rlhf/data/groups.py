"""Groups of rated completions: what losses over a whole group train on, and the pairs that they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from hf_rlhf.data.json_columns import ROW_OPTIONS, make_dataset
from hf_rlhf.data.prepared import PreparedSet
from hf_rlhf.data.report import BEGUN, Lengths, Limit, begun, measured_rows, report_set, select_for_trl
from hf_rlhf.data.rows import LoadedRows, fingerprint, fingerprints
from hf_rlhf.data.shapes import in_shape
from hf_rlhf.data.tokens import (
    NOTHING,
    RefusedByTemplate,
    chat_text,
    options_by_row,
    require_chat_template,
    token_ids,
)
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RATED_COLUMNS = ("prompt", "completions", "ratings", "source")


def pairs_of_groups(rows: LoadedRows) -> tuple[LoadedRows, int]:
    """Return all pairs of completions of one group whose ratings differ, and the number of those that do not.

    The higher rating is the chosen one, and the difference is the `margin`. A pair stands where its group does.

    Raises InputError where no two ratings of a group differ.
    """
    names = [name for name in ("prompt", "source", *ROW_OPTIONS) if name in rows.columns]
    columns: dict[str, list[Any]] = {name: [] for name in (*names, "chosen", "rejected", "margin")}
    places, ties = [], 0
    for number, row in enumerate(rows.by_row()):
        rated = zip(row["completions"], row["ratings"], strict=True)
        for (one, rating), (other, its_rating) in combinations(rated, 2):
            if rating == its_rating:
                ties += 1
                continue
            better, worse = (one, other) if rating > its_rating else (other, one)
            made = {"chosen": better, "rejected": worse, "margin": abs(rating - its_rating)}
            for name in columns:
                columns[name].append(made[name] if name in made else row[name])
            places.append(rows.place(number))
    _require_pairs(rows, len(places))
    return replace(rows, dataset=make_dataset(columns), places=places, columns=columns), ties


def _require_pairs(rows: LoadedRows, pairs: int) -> None:
    if pairs:
        return
    single = sum(len(ratings) == 1 for ratings in rows.columns["ratings"])
    raise InputError(
        f"{rows.source}: no two completions of one prompt differ in their ratings, so there is nothing to compare:"
        f" {len(rows.dataset)} groups, {single} of them with one completion. Give rows that rate several completions of"
        " a prompt"
    )


def prepare_rating_set(
    rows: LoadedRows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    role: str,
    limit: Limit,
    rating_weights: Mapping[str, float] = NOTHING,
    compared: bool = True,
) -> PreparedSet:
    """Check and report on groups of rated completions, one per row.

    The set has `prompt` (text or messages), `completions` (a list of texts, or of lists of messages), `ratings` (as
    many numbers, a higher one is better), `source` where it is known, and the columns of `ROW_OPTIONS` that there are.
    A group that the chat template refuses is a bad row. `compared` says that completions are compared: then two
    ratings of some group have to differ. For `rating_weights` see `in_shape`.

    Raises InputError for a set of another kind, for bad values, and when no row is left.
    """
    shaped = in_shape(rows, rating_weights)
    if not shaped.are_groups:
        raise InputError(
            f"{rows.source}: the rows hold no ratings of completions.{shaped.layout.sentence} Give rankings, ratings,"
            " labels (true or false, 1 or 0), or the columns prompt, completions and ratings"
        )
    good = _accepted(shaped.rows, tokenizer)
    if compared:
        _require_pairs(good, sum(len(set(ratings)) > 1 for ratings in good.columns["ratings"]))
    kept, repeats = _first_of_equal(good)
    columns, total = kept.columns, len(good.dataset)
    measured = measured_rows(len(kept.dataset))
    lengths = _longest(columns, measured, tokenizer, source=rows.source)
    sizes = Counter(map(len, columns["completions"]))
    report = report_set(
        rows,
        columns,
        total + len(rows.bad_rows.found),
        role=role,
        layout=shaped.layout.public,
        columns=shaped.columns,
        shown=["prompt"],
        left_out={"that are there already": repeats},
        noticed={BEGUN: begun([columns["prompt"]], tokenizer)},
        lengths=[Lengths.of("prompt and longest completion", lengths, limit)],
        counted="groups",
        notes=[
            f"groups: {total}, of {min(sizes)} to {max(sizes)} completions, from {shaped.rows_in} rows",
            "ratings: {:.3g} to {:.3g}".format(*_range(columns["ratings"])),
        ],
    )
    return PreparedSet(
        select_for_trl(kept.dataset, RATED_COLUMNS),
        report,
        kept.place,
        fingerprints=frozenset(fingerprints(columns, ["prompt", *ROW_OPTIONS])),
    )


def _accepted(rows: LoadedRows, tokenizer: PreTrainedTokenizerBase) -> LoadedRows:
    """Return the groups that the chat template takes whole; plain text asks no template."""
    if isinstance(rows.columns["prompt"][0], str):
        return rows
    require_chat_template(tokenizer, source=rows.source)
    problems: list[str | None] = []
    for row, options in zip(rows.by_row(), options_by_row(rows.columns), strict=True):
        problem = None
        for completion in row["completions"]:
            try:
                chat_text([*row["prompt"], *completion], tokenizer, continued=False, options=options)
            except RefusedByTemplate as refusal:
                problem = str(refusal)
        problems.append(problem)
    return rows.without({"completions": problems})


def _first_of_equal(rows: LoadedRows) -> tuple[LoadedRows, int]:
    seen: dict[bytes, int] = {}
    for number, (row, options) in enumerate(zip(rows.by_row(), options_by_row(rows.columns), strict=True)):
        seen.setdefault(fingerprint(row["prompt"], row["completions"], row["ratings"], options), number)
    repeats = len(rows.dataset) - len(seen)
    return (rows.select(list(seen.values())) if repeats else rows), repeats


def _longest(
    columns: Mapping[str, Sequence[Any]], rows: Sequence[int], tokenizer: PreTrainedTokenizerBase, *, source: str
) -> list[int]:
    """Return the tokens of the prompt with the longest of its completions, in these rows."""
    options = options_by_row(columns)
    longest = []
    for row in rows:
        prompt, completions = columns["prompt"][row], columns["completions"][row]
        whole = [prompt + completion for completion in completions]
        ids = token_ids(whole, tokenizer, continued=False, source=source, options=[options[row]] * len(whole))
        longest.append(max(map(len, ids)))
    return longest


def _range(ratings: Sequence[Sequence[float]]) -> tuple[float, float]:
    return min(map(min, ratings)), max(map(max, ratings))
