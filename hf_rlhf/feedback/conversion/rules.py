"""The rules by which answers become rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hf_rlhf.errors import InputError
from hf_rlhf.feedback.store import MODEL, PERSON, RULE

SMALL_MARGINS = (1 / 3, 2 / 3, 1.0)
"""Margins of the strengths 1, 2 and 3. Llama 2 (arXiv 2307.09288, table 28) calls a scale of this size small."""

GOOD_SHARE, BAD_SHARE = 0.75, 0.25
"""Places on the scale from and up to which a rating is a good or a bad label: of 1 to 5, from 4 and up to 2."""


@dataclass(frozen=True)
class ConversionRules:
    """Rules by which answers become rows.

    Attributes:
        margins: of the strengths 1, 2 and 3 of a preference; rankings, ratings and corrections give from 0 to 1. None
            leaves the column out.
        min_rating_difference: two ratings that differ by less are a tie; in points of their scale.
        min_agreement: rows on which a smaller share of the annotators agrees are omitted.
        include_flagged: use the answers to tasks that somebody flagged.
        standardize_ratings: give ratings as z-scores over all ratings of their annotator.
        separator: put between a prompt and a completion that are text and have no whitespace where they meet, since TRL
            joins them as they are.
        annotator_kinds: whose answers are used.
        excluded_annotators: whose are not.
    """

    margins: Sequence[float] | None = SMALL_MARGINS
    min_rating_difference: float = 1.0
    min_agreement: float = 0.0
    include_flagged: bool = False
    standardize_ratings: bool = False
    separator: str = " "
    annotator_kinds: Sequence[str] = (PERSON, RULE, MODEL)
    excluded_annotators: Sequence[str] = ()

    def __post_init__(self):
        if self.margins is not None and (
            len(self.margins) != 3
            or not all(math.isfinite(margin) and margin >= 0 for margin in self.margins)
            or list(self.margins) != sorted(self.margins)
        ):
            raise InputError(
                f"margins={self.margins} is invalid: they are three numbers from 0 that do not fall, for slightly"
                " better, better and much better. Change them."
            )
        if not 0 <= self.min_agreement <= 1:
            raise InputError(f"min_agreement={self.min_agreement} is invalid: it is a share. Give 0 to 1.")
        if not self.min_rating_difference > 0:
            raise InputError(
                f"min_rating_difference={self.min_rating_difference} is invalid: equal ratings would be preferences."
                " Give a number above 0."
            )
        if unknown := [kind for kind in self.annotator_kinds if kind not in (PERSON, RULE, MODEL)]:
            raise InputError(
                f"annotator_kinds={unknown[0]} is invalid: the kinds are {PERSON}, {RULE} and {MODEL}. Change it."
            )

    def margin_of(self, strength: int, strengths: int) -> float | None:
        """Return the margin of a preference of this strength, of so many; None where no strength was asked."""
        if self.margins is None or strengths == 1:
            return None
        return float(self.margins[strength - 1] if strengths == 3 else self.margins[0 if strength == 1 else 2])
