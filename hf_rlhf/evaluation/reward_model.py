"""Agreement of a reward model with people."""

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import torch

from hf_rlhf.data.rows import read_columns
from hf_rlhf.data.tokens import NOTHING, ROW_OPTIONS, with_row_options
from hf_rlhf.evaluation.metrics import wilson_interval
from hf_rlhf.ops.padding import lengths_to_mask
from hf_rlhf.ops.preference import agreement, label_agreement, preference_accuracy
from hf_rlhf.rewards.calls import accepted

ABOUT_PAIRS = ("margin", "source", "subset")
"""Columns that say how much better the chosen answer is, and where a pair comes from."""


class Pairs(NamedTuple):
    """Preferences as a reward function takes them."""

    prompts: list[Any]
    chosen: list[Any]
    rejected: list[Any]
    options: Mapping[str, list[Any]] = NOTHING  # columns `tools` and `chat_template_kwargs`, where the set has them
    about: Mapping[str, list[Any]] = NOTHING  # those of `ABOUT_PAIRS`, where the set has them; no reward gets these

    @property
    def texts(self) -> tuple[list[Any], list[Any], Mapping[str, list[Any]]]:
        """Prompts, the chosen completions, and the columns of `ROW_OPTIONS`."""
        return self.prompts, self.chosen, self.options

    @classmethod
    def from_dataset(cls, dataset) -> "Pairs":
        """Read TRL's preference format; a set without a prompt column has whole texts or dialogues to compare."""
        names = [name for name in ("prompt", "chosen", "rejected", *ABOUT_PAIRS) if name in dataset.column_names]
        columns = read_columns(dataset, with_row_options(names, dataset.column_names))
        nothing = [] if isinstance(columns["chosen"][0], list) else ""
        prompts = columns.get("prompt") or [nothing] * len(dataset)
        options, about = (
            {name: columns[name] for name in group if name in columns} for group in (ROW_OPTIONS, ABOUT_PAIRS)
        )
        return cls(prompts, columns["chosen"], columns["rejected"], options, about)

    def select(self, rows: Sequence[int]) -> "Pairs":
        """Return these pairs alone, in this order."""

        def of(values: Sequence[Any]) -> list[Any]:
            return [values[row] for row in rows]

        options, about = ({name: of(column) for name, column in group.items()} for group in (self.options, self.about))
        return Pairs(of(self.prompts), of(self.chosen), of(self.rejected), options, about)

    def as_messages(self) -> "Pairs":
        """Return pairs of text as one question of the user and one answer of the assistant each."""

        def of(role: str, texts: Sequence[str]) -> list[list[dict[str, str]]]:
            return [[{"role": role, "content": text}] for text in texts]

        chosen, rejected = of("assistant", self.chosen), of("assistant", self.rejected)
        return Pairs(of("user", self.prompts), chosen, rejected, self.options, self.about)

    def rewards(self, reward: Callable[..., list[float]], answers: list[Any]) -> list[float]:
        """Return the rewards of `chosen` or `rejected` by a function of TRL's contract."""
        return reward(**accepted(reward, {"prompts": self.prompts, "completions": answers, **self.options}))


class RatedGroups(NamedTuple):
    """Rated completions, flat, as a reward function takes them; `groups` has the number of the group of each."""

    prompts: list[Any]
    completions: list[Any]
    ratings: list[float]
    groups: list[int]
    options: Mapping[str, list[Any]] = NOTHING
    about: Mapping[str, list[Any]] = NOTHING  # the column `source`, where the set has it

    @property
    def texts(self) -> tuple[list[Any], list[Any], Mapping[str, list[Any]]]:
        """Prompts, completions, and the columns of `ROW_OPTIONS`."""
        return self.prompts, self.completions, self.options

    @classmethod
    def from_dataset(cls, dataset, kept: Sequence[Sequence[int]] | None = None) -> "RatedGroups":
        """Read rows of `prompt`, `completions` and `ratings`; `kept` are the places of those to read in each row."""
        names = ["prompt", "completions", "ratings", *(name for name in ("source",) if name in dataset.column_names)]
        columns = read_columns(dataset, with_row_options(names, dataset.column_names))
        of_row = [range(len(ratings)) for ratings in columns["ratings"]] if kept is None else kept
        places = [(row, which) for row, numbers in enumerate(of_row) for which in numbers]
        options, about = (
            {name: [columns[name][row] for row, _ in places] for name in group if name in columns}
            for group in (ROW_OPTIONS, ("source",))
        )
        return cls(
            [columns["prompt"][row] for row, _ in places],
            [columns["completions"][row][which] for row, which in places],
            [float(columns["ratings"][row][which]) for row, which in places],
            [row for row, _ in places],
            options,
            about,
        )

    def one_pair_each(self, seed: int = 0) -> Pairs | None:
        """Return a pair of each group that has two ratings, drawn by `seed`; its `margin` is their difference.

        All pairs of a prompt would not be independent, and would score each completion several times. None where no
        group has a pair.
        """
        of_group: dict[int, list[int]] = {}
        for place, group in enumerate(self.groups):
            of_group.setdefault(group, []).append(place)
        rng, drawn = random.Random(seed), []
        for places in of_group.values():
            unequal = [pair for pair in combinations(places, 2) if self.ratings[pair[0]] != self.ratings[pair[1]]]
            if unequal:
                drawn.append(sorted(rng.choice(unequal), key=lambda place: -self.ratings[place]))
        if not drawn:
            return None
        margins = [self.ratings[better] - self.ratings[worse] for better, worse in drawn]
        options, about = (
            {name: [column[better] for better, _ in drawn] for name, column in group.items()}
            for group in (self.options, self.about)
        )
        chosen, rejected = ([self.completions[pair[side]] for pair in drawn] for side in (0, 1))
        return Pairs([self.prompts[pair[0]] for pair in drawn], chosen, rejected, options, {**about, "margin": margins})

    def rewards(self, reward: Callable[..., list[float]]) -> list[float]:
        """Return the rewards of all completions by a function of TRL's contract."""
        arguments = {"prompts": self.prompts, "completions": self.completions, **self.options}
        return reward(**accepted(reward, arguments))


def rated_accuracy(reward: Callable[..., list[float]], rated: RatedGroups, *, labels: bool = False) -> dict[str, float]:
    """Return the share of pairs of a group that are rewarded as they are rated, with a 95% Wilson interval.

    Pairs of one prompt are not independent, so the interval is that of as many draws as there are groups with a pair.
    With `labels`, the share of completions on their side of 0. A tie counts half.
    """
    sizes = torch.bincount(torch.tensor(rated.groups))
    mask = lengths_to_mask(sizes, int(sizes.max()))
    rewards, ratings = (
        torch.zeros(mask.shape, dtype=torch.float64).masked_scatter(mask, torch.tensor(values, dtype=torch.float64))
        for values in (rated.rewards(reward), rated.ratings)
    )
    found = (label_agreement if labels else agreement)(rewards, ratings, mask)
    compared = int(found.compared.sum())
    draws = compared if labels else int((found.compared > 0).sum())
    if not draws:
        return {"eval_rows": float(len(sizes))}
    accuracy = found.agreed.sum().item() / compared
    low, high = wilson_interval(accuracy, draws)
    margin = {} if labels else {"eval_margin": found.margin.sum().item() / compared}
    interval = {"eval_accuracy": accuracy, "eval_accuracy_low": low, "eval_accuracy_high": high}
    return {"eval_rows": float(len(sizes)), **interval, **margin}


def reward_accuracy(reward: Callable[..., list[float]], pairs: Pairs) -> dict[str, float]:
    """Return the share of pairs whose chosen answer gets the higher reward, and the mean margin.

    A tie counts half. The share has a 95% Wilson interval.
    """
    chosen, rejected = pairs.rewards(reward, pairs.chosen), pairs.rewards(reward, pairs.rejected)
    accuracy = preference_accuracy(
        *(torch.tensor(rewards, dtype=torch.float64) for rewards in (chosen, rejected))
    ).item()
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    low, high = wilson_interval(accuracy, len(margins))
    return {
        "eval_rows": float(len(margins)),
        "eval_accuracy": accuracy,
        "eval_accuracy_low": low,
        "eval_accuracy_high": high,
        "eval_margin": sum(margins) / len(margins),
    }
