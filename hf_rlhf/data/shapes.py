"""Sets of any public format as sets of one of two shapes: pairs in TRL's format, or groups of rated completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from hf_rlhf.data.checks import margin_problem
from hf_rlhf.data.conversions import CONVERSIONS, BadValue, Compared, Rated, Reading, reads_messages, source_name
from hf_rlhf.data.json_columns import ROW_OPTIONS, make_dataset, put_beside
from hf_rlhf.data.layouts import Layout, layout_of
from hf_rlhf.data.public_formats import FORMATS, LABELS, RATINGS, Format, label_problem
from hf_rlhf.data.rows import LoadedRows, fingerprint, require_columns
from hf_rlhf.data.tokens import NOTHING, options_by_row, with_row_options
from hf_rlhf.errors import InputError

SCORES = ("score_chosen", "score_rejected")
ANSWER_COLUMNS = ("chosen", "rejected", "margin", "completions", "ratings")
SHAPED_COLUMNS = ("prompt", *ANSWER_COLUMNS, "source")
KEPT = "score_ratio"
"""A column of SHP that stays beside the pairs, since some train only on pairs above a ratio."""

UNKNOWN_SOURCE = "unknown"
LABELED_FALSE = "whose label is false: fine-tuning would imitate the completion"
HELPFULNESS: Mapping[str, float] = {"helpfulness": 1.0}


class Shaped(NamedTuple):
    """Rows in one of the two shapes, with the columns of that shape read.

    `columns` are the columns that were used, as the set names them. `rows_in` counts the rows that became these, which
    are more where completions were put together by their prompt.
    """

    rows: LoadedRows
    layout: Layout
    columns: list[str]
    rows_in: int

    @property
    def are_groups(self) -> bool:
        """True for groups of rated completions, False for pairs."""
        return bool(self.layout.public) and FORMATS[self.layout.public].holds != "pair"


def in_shape(rows: LoadedRows, rating_weights: Mapping[str, float] = NOTHING) -> Shaped:
    """Return the set with pairs or rated groups; a set that is no public format keeps its columns.

    `rating_weights` are those of the attributes whose weighted sum is a rating, by default `helpfulness` alone. A set
    of pairs with `score_chosen` and `score_rejected` gets their difference as its `margin`, unless it has one.

    Raises InputError for bad values, as `LoadedRows.good` does, and for weights of columns that are not there.
    """
    layout = layout_of(rows.dataset, source=rows.source)
    if layout.public:
        return _converted(rows, layout, rating_weights or HELPFULNESS)
    if rating_weights:
        raise InputError(
            f"rating_weights={_written(rating_weights)} is invalid: the rows of {rows.source} have no rated attributes"
            f"{', they hold ' + str(layout) if layout.sentence else ''}. Omit it"
        )
    rows, columns = _with_margin(_with_source(rows))
    return Shaped(rows, layout, columns, len(rows.dataset))


def rows_converted(
    rows: LoadedRows, name: str, rating_weights: Mapping[str, float] = HELPFULNESS
) -> tuple[LoadedRows, list[Compared | Rated | BadValue]]:
    """Return rows of the format `name` with their columns read, and what each becomes, or why it cannot."""
    found, format = rows.dataset.column_names, FORMATS[name]
    if name == RATINGS:
        require_columns(found, list(rating_weights), source=f"{rows.source}: rating_weights")
    names = _used_columns(rows, format, rating_weights)
    rows = rows.read(with_row_options(names, found))
    reading = Reading(reads_messages(rows.columns), rating_weights)
    made: list[Compared | Rated | BadValue] = []
    for row in rows.by_row():
        try:
            made.append(CONVERSIONS[name](row, reading))
        except BadValue as error:
            made.append(error)
    return rows, made


def _converted(rows: LoadedRows, layout: Layout, rating_weights: Mapping[str, float]) -> Shaped:
    format = FORMATS[layout.public]
    if rating_weights != HELPFULNESS and layout.public != RATINGS:
        raise InputError(
            f"rating_weights={_written(rating_weights)} is invalid: the set {rows.source} holds {layout}, which have no"
            " attributes to weigh. Omit it"
        )
    rows, made = rows_converted(rows, layout.public, rating_weights)
    problems: dict[str, list[str | None]] = {}
    for number, each in enumerate(made):
        if isinstance(each, BadValue):
            problems.setdefault(each.column, [None] * len(made))[number] = str(each)
    good = rows.good(problems)
    rows, shaped, count = rows.select(good), [made[number] for number in good], len(good)
    if format.holds == "completion":
        rows, shaped = _by_prompt(rows, shaped)
    used = _used_columns(rows, format, rating_weights)
    return Shaped(_with_columns(rows, shaped, used), layout, used, count)


def _used_columns(rows: LoadedRows, format: Format, rating_weights: Mapping[str, float]) -> list[str]:
    found = format.columns(rows.dataset.column_names)
    if format.name != RATINGS:
        return found
    return [name for name in found if name != "helpfulness"] + list(rating_weights)


def _by_prompt(rows: LoadedRows, made: Sequence[Any]) -> tuple[LoadedRows, list[Rated]]:
    """Return the first row of each prompt, and the completions of all its rows in their order."""
    groups: dict[bytes, tuple[int, Rated]] = {}
    for number, (each, own) in enumerate(zip(made, options_by_row(rows.columns), strict=True)):
        key = fingerprint(each.prompt, own)
        first, group = groups.get(key, (number, Rated(each.prompt, [], [], each.source)))
        groups[key] = (
            first,
            group._replace(completions=group.completions + each.completions, ratings=group.ratings + each.ratings),
        )
    firsts, grouped = zip(*groups.values(), strict=True)
    return rows.select(firsts), list(grouped)


def _with_columns(rows: LoadedRows, made: Sequence[Any], used: Sequence[str]) -> LoadedRows:
    """Return the rows with the columns of their shape in place of those that they were made of."""
    columns = {name: [getattr(each, name) for each in made] for name in made[0]._fields}
    for name, default in (("margin", None), ("source", UNKNOWN_SOURCE)):
        values = columns.pop(name, [None])
        if any(value is not None for value in values):
            columns[name] = [default if value is None else value for value in values]
    options = {name: values for name, values in rows.columns.items() if name in ROW_OPTIONS}
    replaced = {*used, *SHAPED_COLUMNS} - {KEPT}
    others = rows.dataset.with_format(None).remove_columns([n for n in rows.dataset.column_names if n in replaced])
    dataset = put_beside(make_dataset(columns), others) if others.column_names else make_dataset(columns)
    return replace(rows, dataset=dataset, columns={**columns, **options})


def _with_source(rows: LoadedRows) -> LoadedRows:
    """Return rows whose `source` is text in every row, or is gone where no row names one."""
    if "source" not in rows.dataset.column_names:
        return rows
    names = list(map(source_name, rows.read(["source"]).columns["source"]))
    dataset = rows.dataset.with_format(None).remove_columns("source")
    if not any(names) or not dataset.column_names:
        return rows
    made = [name or UNKNOWN_SOURCE for name in names]
    dataset = put_beside(dataset, make_dataset({"source": made}))
    return replace(rows, dataset=dataset, columns={**rows.columns, "source": made})


def _with_margin(rows: LoadedRows) -> tuple[LoadedRows, list[str]]:
    """Return pairs with the difference of their scores as the margin, and the columns that it was made of."""
    found = rows.dataset.column_names
    if "margin" in found or not {"chosen", "rejected", *SCORES} <= set(found):
        return rows, []
    rows = rows.read(SCORES)
    rows = rows.without({name: list(map(margin_problem, rows.columns[name])) for name in SCORES})
    chosen, rejected = (rows.columns[name] for name in SCORES)
    margins = [float(better - worse) for better, worse in zip(chosen, rejected, strict=True)]
    columns = {name: values for name, values in rows.columns.items() if name not in SCORES}
    dataset = put_beside(rows.dataset.with_format(None), make_dataset({"margin": margins}))
    return replace(rows, dataset=dataset, columns={**columns, "margin": margins}), list(SCORES)


def labeled_true(rows: LoadedRows) -> tuple[LoadedRows, dict[str, int]]:
    """Return the rows to imitate, and how many others there are: of binary labels, those with the label false.

    Raises InputError for a label that is neither true nor false, and where no row has the label true.
    """
    if layout_of(rows.dataset, source=rows.source).public != LABELS:
        return rows, {}
    read = rows.read(["label"])
    labels = read.columns["label"]
    read = read.without({"label": list(map(label_problem, labels))})
    kept = [row for row, label in enumerate(read.columns["label"]) if label]
    if not kept:
        raise InputError(f"{rows.source}: every label is false, so there is no text to imitate. Give rows labeled true")
    false = {LABELED_FALSE: len(read.dataset) - len(kept)}
    return replace(read.select(kept), columns={}), false


def _written(weights: Mapping[str, float]) -> str:
    return ",".join(f"{name}:{weight:g}" for name, weight in weights.items())
