"""Pairs as they are read, whether the set holds pairs, a public format, or groups of rated completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hf_rlhf.data.groups import pairs_of_groups
from hf_rlhf.data.layouts import CONVERSATIONAL, PREFERENCE_COLUMNS, TEXT
from hf_rlhf.data.public_formats import SHP, closest_format
from hf_rlhf.data.rows import LoadedRows, require_columns
from hf_rlhf.data.shapes import Shaped, in_shape
from hf_rlhf.data.tokens import with_row_options


class PairRows(NamedTuple):
    """Rows of pairs with their columns read, and where they come from.

    `layout` says how these pairs are written, and `ties` counts the pairs of a group with equal ratings.
    """

    rows: LoadedRows
    layout: str
    shaped: Shaped
    ties: int = 0

    @property
    def groups(self) -> int:
        """The number of rated groups that the pairs were made of."""
        return len(self.shaped.rows.dataset) if self.shaped.are_groups else 0

    @property
    def name(self) -> str:
        """The name of the format that the set is in, for the report."""
        return self.shaped.layout.public or self.layout

    @property
    def columns(self) -> list[str]:
        """The columns that were used, as the set names them."""
        made = self.shaped.columns
        if self.shaped.layout.public:
            return made
        own = [name for name in (*PREFERENCE_COLUMNS, "source") if name in self.rows.columns]
        return [name for name in own if not (name == "margin" and made)] + made

    def notes(self, margins: Sequence[float]) -> list[str]:
        """Return sentences on groups that became pairs, and on what the margins are."""
        made_of = f"groups: {self.groups}, of which these are the pairs, from {self.shaped.rows_in} rows"
        if public := self.shaped.layout.public:
            origin = "logarithm of score_ratio" if public == SHP else "difference of the ratings"
        else:
            origin = " - ".join(self.shaped.columns) or "as given"
        margin = f"margin: {origin}; {min(margins):.3g} to {max(margins):.3g}" if len(margins) else ""
        return [note for note in (made_of if self.groups else "", margin) if note]


def read_pairs(rows: LoadedRows, rating_weights: Mapping[str, float]) -> PairRows:
    """Read the pairs, or make them of a public format. Raises InputError for columns that are missing."""
    shaped = in_shape(rows, rating_weights)
    if shaped.are_groups:
        pairs, ties = pairs_of_groups(shaped.rows)
        return PairRows(pairs, _written_as(pairs), shaped, ties)
    rows = shaped.rows
    if shaped.layout.public:
        return PairRows(rows, _written_as(rows), shaped)
    found = rows.dataset.column_names
    if not {"chosen", "rejected"} <= set(found):
        closest = closest_format(found) if not shaped.layout.texts else None
        if closest is not None:
            holds = f" The other columns are those of {closest.name}."
            require_columns(found, closest.needs, source=rows.source, holds=holds)
        require_columns(found, ("chosen", "rejected"), source=rows.source, holds=shaped.layout.sentence)
    rows = rows.read(with_row_options([name for name in PREFERENCE_COLUMNS if name in found], found))
    return PairRows(rows, shaped.layout.pairs, shaped)


def _written_as(rows: LoadedRows) -> str:
    return CONVERSATIONAL if isinstance(rows.columns["prompt"][0], list) else TEXT
