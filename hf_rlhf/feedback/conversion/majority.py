"""One outcome of the votes of several annotators, and who stands behind it."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from hf_rlhf.feedback.store import Event

Outcome = TypeVar("Outcome", bound=Hashable)


class Majority(NamedTuple):
    """The outcome with more votes than every other, None where two have the most; `agreement` is its share."""

    outcome: Any
    agreement: float


def majority(outcomes: Sequence[Outcome]) -> Majority:
    """Return the outcome that most votes are for."""
    counts = Counter(outcomes).most_common(2)
    if len(counts) > 1 and counts[0][1] == counts[1][1]:
        return Majority(None, counts[0][1] / len(outcomes))
    return Majority(counts[0][0], counts[0][1] / len(outcomes))


def provenance(events: Iterable[Event], agreement: float, sources: Sequence[str | None]) -> dict[str, Any]:
    """Return the columns that say where a row comes from; `sources` of the completions in their order in the row."""
    found = sorted({event.uuid: event for event in events}.values(), key=lambda event: event.number or 0)
    annotators = sorted({event.annotator for event in found})
    return {
        "annotators": annotators,
        "n": len(annotators),
        "agreement": round(agreement, 6),
        "sources": list(sources) if any(source is not None for source in sources) else [],
        "event_ids": [event.uuid for event in found],
    }
