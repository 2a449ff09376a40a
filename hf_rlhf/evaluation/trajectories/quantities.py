"""Quantities that the color of a token may show, and the scales between numbers and colors."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Quantity:
    """A number of each token.

    Attributes:
        name: as the flag `color_by` names it.
        column: of the trajectories.
        title, meaning: for people.
        diverging: colored from 0 in both directions; otherwise from the lowest number to the highest.
    """

    name: str
    column: str
    title: str
    meaning: str
    diverging: bool = False


QUANTITIES = {
    each.name: each
    for each in (
        Quantity(
            "advantage",
            "advantages",
            "Advantage",
            "How much better a token was than the critic expected. The loss makes tokens above 0 more likely.",
            diverging=True,
        ),
        Quantity(
            "reward",
            "per_token_rewards",
            "Reward",
            "What PPO pays for a token: the KL penalty on each, and the score on the last.",
            diverging=True,
        ),
        Quantity("value", "values", "Value", "The return that the critic expects before a token."),
        Quantity(
            "kl",
            "kl",
            "KL",
            "How much likelier a token is than under the reference, in nats. One token may be below 0.",
            diverging=True,
        ),
        Quantity("return", "returns", "Return", "What the critic learns to expect before a token."),
        Quantity("logprob", "logprobs", "Log-probability", "Of a token, under the policy that sampled it, in nats."),
        Quantity("entropy", "entropy", "Entropy", "Of the distribution that a token was drawn from, in nats."),
    )
}

_ENDS = 0.02  # share of the numbers that lies beyond each end of a scale


@dataclass(frozen=True)
class Scale:
    """The numbers at both ends of a scale of colors. Numbers beyond have the color of the end."""

    low: float
    high: float
    diverging: bool

    @classmethod
    def of(cls, quantity: Quantity, rows: Iterable[Mapping[str, Any]]) -> "Scale":
        """Return the scale on which the numbers of these rows differ visibly, a few outliers excepted."""
        found = sorted(
            number
            for row in rows
            for number in row[quantity.column] or ()
            if number is not None and math.isfinite(number)
        )
        if not found:
            return cls(-1.0 if quantity.diverging else 0.0, 1.0, quantity.diverging)
        if quantity.diverging:
            sizes = sorted(map(abs, found))
            end = sizes[math.ceil((1 - _ENDS) * len(sizes)) - 1] or sizes[-1]
            return cls(-end or 0.0, end, True)  # no negative zero
        beyond = int(_ENDS * len(found))
        return cls(found[beyond], found[-1 - beyond], False)

    def strength(self, number: float | None) -> float | None:
        """Return where a number is: from -1 to 1, 0 without a color; None where there is none."""
        if number is None or not math.isfinite(number):
            return None
        if self.high == self.low or (self.diverging and not self.high):
            return 0.0
        place = number / self.high if self.diverging else (number - self.low) / (self.high - self.low)
        return min(max(place, -1.0 if self.diverging else 0.0), 1.0)
