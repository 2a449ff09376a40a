"""Agreement between annotators by form, by criterion and by two annotators, as plain JSON for a page or a table."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from hf_rlhf.feedback.bias import gold_accuracy, median_seconds, pace, position_bias
from hf_rlhf.feedback.coefficients import (
    INTERVAL,
    NOMINAL,
    ORDINAL,
    Estimate,
    Resampled,
    cohens_kappa,
    coincidences,
    kendalls_w,
    krippendorff_alpha,
    number_or_none,
    percent_agreement,
)
from hf_rlhf.feedback.forms import BOTH_BAD, CHECKBOX, CHOICE, CUSTOM, PAIRWISE, RANKING, RATING, SCALE, SPAN, TIE
from hf_rlhf.feedback.store import ANSWER, FLAG, SKIP, Event, FeedbackStore
from hf_rlhf.feedback.tasks import Task

_MOST_PAIRS = 200  # of annotators, those with the most common units


@dataclass
class Units:
    """Values that annotators gave to the same things.

    Attributes:
        form: the kind of form.
        what: what was judged: preference, rank, a criterion, a field.
        levels: the levels of alpha that make sense for these values.
        given: for each task, for each unit of it, annotator -> value.
    """

    form: str
    what: str
    levels: tuple[str, ...]
    given: dict[str, dict[Any, dict[str, Any]]] = field(default_factory=dict)

    def add(self, task: str, unit: Any, annotator: str, value: Any) -> None:
        """Note one value."""
        self.given.setdefault(task, {}).setdefault(unit, {})[annotator] = value


def report_of(store: FeedbackStore, *, seed: int = 0) -> dict[str, Any]:
    """Return the agreement of all annotators and the checks of each, as JSON.

    Keys: `tasks`, `answers`, `annotators` (a list with `name`, `kind`, `answers`, `skips`, `flags`, `position`, `gold`,
    `pace`), `position` of all together, and `agreement`: for each form and what it judges `units`, `annotations`,
    `annotators`, `percent`, `alpha` by level, `kendalls_w` for rankings, and `pairs` of annotators with `percent`,
    `kappa` and `kappa_linear`. An estimate is {"value", "low", "high"}, None where it is undefined. Gold questions
    count for the checks of annotators alone.
    """
    tasks = {task.id: task for task in store.tasks()}
    events = store.current()
    answers = [(tasks[event.task], event) for event in events if event.kind == ANSWER]
    medians = median_seconds(answers)
    by_name: dict[str, list[Event]] = {}
    for event in events:
        by_name.setdefault(event.annotator, []).append(event)
    annotators = []
    for name in sorted(by_name):
        own = [(tasks[event.task], event) for event in by_name[name] if event.kind == ANSWER]
        annotators.append(
            {
                "name": name,
                "kind": by_name[name][-1].annotator_kind,
                "answers": len(own),
                "skips": sum(event.kind == SKIP for event in by_name[name]),
                "flags": sum(event.kind == FLAG for event in by_name[name]),
                "position": position_bias(own),
                "gold": gold_accuracy(own),
                "pace": pace(own, medians),
            }
        )
    ordinary = [(task, event) for task, event in answers if task.gold is None]
    return {
        "tasks": len(tasks),
        "answers": len(answers),
        "annotators": annotators,
        "position": position_bias(answers),
        "agreement": [agreement_of(units, seed=seed) for units in units_of(ordinary)],
    }


def units_of(answers: Iterable[tuple[Task, Event]]) -> list[Units]:
    """Return what the answers gave values to, by form and what is judged; text that was written is not compared.

    Fields of one name, a scale in one custom form and a choice in another, are not compared either.
    """
    found: dict[tuple[str, str, tuple[str, ...]], Units] = {}
    for task, event in answers:
        for what, levels, unit, value in _values(task, event.value or {}):
            units = found.setdefault((task.form.kind, what, levels), Units(task.form.kind, what, levels))
            units.add(task.id, unit, event.annotator, value)
    return list(found.values())


def agreement_of(units: Units, *, seed: int = 0) -> dict[str, Any]:
    """Return the coefficients of some units; bootstrap intervals resample tasks."""
    shared = {
        task: {unit: given for unit, given in of_task.items() if len(given) > 1}
        for task, of_task in units.given.items()
    }
    shared = {task: of_task for task, of_task in shared.items() if of_task}
    values = sorted({value for of_task in shared.values() for given in of_task.values() for value in given.values()})
    sums = Resampled.of(_parts(shared, values), seed)
    alphas = {
        level: sums.estimate(lambda counts, level=level: krippendorff_alpha(counts, level, values))
        for level in units.levels
    }
    return {
        "form": units.form,
        "what": units.what,
        "tasks": len(shared),
        "units": sum(map(len, shared.values())),
        "annotations": sum(len(given) for of_task in shared.values() for given in of_task.values()),
        "annotators": len({name for of_task in shared.values() for given in of_task.values() for name in given}),
        "percent": sums.estimate(percent_agreement)._asdict(),
        "alpha": {level: found._asdict() for level, found in alphas.items()},
        **({"kendalls_w": _kendall(shared, seed)} if units.form == RANKING else {}),
        "pairs": _pairs(shared, values, len(units.levels) > 1, seed),
    }


Shared = Mapping[str, Mapping[Any, Mapping[str, Any]]]


def _values(task: Task, value: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], Any, Any]]:
    """Yield (what, levels, unit, value) of one answer."""
    form = task.form
    ordered = (NOMINAL, ORDINAL, INTERVAL)
    if form.kind == PAIRWISE:
        side = value["preferred"]
        yield "side", (NOMINAL,), 0, str(side)
        if side != BOTH_BAD:
            strength = 0 if side == TIE else value["strength"] * (1 if side else -1)
            yield "strength", ordered, 0, strength
    elif form.kind == RANKING:
        for number, rank in enumerate(value["ranks"]):
            yield "rank", (ORDINAL, INTERVAL), number, rank
    elif form.kind == RATING:
        for name in form.criteria:
            for number, rating in enumerate(value["ratings"][name]):
                yield name, ordered, number, rating
    elif form.kind == SPAN:
        for word in re.finditer(r"\S+", task.texts[0]):
            covering = {s["label"] for s in value["spans"] if s["start"] < word.end() and word.start() < s["end"]}
            yield "label of a word", (NOMINAL,), word.start(), ", ".join(sorted(covering))
    elif form.kind == CUSTOM:
        for each in form.fields:
            if each.type in (SCALE, CHOICE, CHECKBOX) and each.name in value["fields"]:
                levels = ordered if each.type == SCALE else (NOMINAL,)
                given = value["fields"][each.name]
                yield each.name, levels, 0, given if each.type == SCALE else str(given)


def _parts(shared: Shared, values: Sequence[Any]) -> np.ndarray:
    """Return the coincidence matrix of each task, `(U, V, V)`."""
    numbers = {value: number for number, value in enumerate(values)}
    made = [
        coincidences([[numbers[value] for value in given.values()] for given in of_task.values()], len(values)).sum(0)
        for of_task in shared.values()
    ]
    return np.stack(made) if made else np.zeros((0, 0, 0))


def _kendall(shared: Shared, seed: int) -> dict[str, Any]:
    """Return the mean of Kendall's W over tasks that several annotators ranked."""
    found = []
    for of_task in shared.values():
        names = set.intersection(*(set(given) for given in of_task.values()))
        w = kendalls_w([[of_task[unit][name] for unit in sorted(of_task)] for name in sorted(names)])
        found += [w] if number_or_none(w) is not None else []
    if not found:
        return Estimate(None, None, None)._asdict()
    parts = np.array([[w, 1.0] for w in found])
    return Resampled.of(parts, seed).estimate(lambda sums: sums[..., 0] / sums[..., 1])._asdict()


def _pairs(shared: Shared, values: Sequence[Any], ordered: bool, seed: int) -> list[dict[str, Any]]:
    """Return percent and kappa of each two annotators with common units, those with the most of them first."""
    numbers = {value: number for number, value in enumerate(values)}
    common: dict[tuple[str, str], list[np.ndarray]] = {}
    for of_task in shared.values():
        of_pair: dict[tuple[str, str], np.ndarray] = {}
        for given in of_task.values():
            for one, other in combinations(sorted(given), 2):
                confusion = of_pair.setdefault((one, other), np.zeros((len(numbers), len(numbers))))
                confusion[numbers[given[one]], numbers[given[other]]] += 1
        for names, confusion in of_pair.items():
            common.setdefault(names, []).append(confusion)
    most = sorted(common.items(), key=lambda item: (-sum(each.sum() for each in item[1]), item[0]))[:_MOST_PAIRS]
    return [_pair(names, np.stack(parts), values if ordered else None, seed) for names, parts in most]


def _pair(names: Sequence[str], parts: np.ndarray, scale: Sequence[float] | None, seed: int) -> dict[str, Any]:
    made: dict[str, Any] = {"annotators": list(names), "n": int(parts.sum())}
    sums = Resampled.of(parts, seed)
    made["percent"] = sums.estimate(percent_agreement)._asdict()
    made["kappa"] = sums.estimate(cohens_kappa)._asdict()
    if scale is not None:
        made["kappa_linear"] = sums.estimate(lambda counts: cohens_kappa(counts, scale))._asdict()
    return made
