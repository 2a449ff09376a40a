"""The parts of a reward that several functions make: the weight, clip and normalization of each.

A part is paid as `weight * clip((part - mean) / (std + 1e-8), -limit, limit)`, where only a normalized part has its
running mean and standard deviation taken off. `hf_rlhf.ppo.scores` computes that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_rlhf.errors import InputError

PART_ARGUMENTS = {"weight": float, "clip": float, "normalize": bool}
"""The arguments that every named reward takes, besides its own."""


@dataclass(frozen=True)
class PartShaping:
    """Weight, clip and normalization of one reward. Raises `InputError` for numbers that cannot be meant.

    Args:
        weight: factor in the sum of the rewards.
        clip: largest size before the weight, in standard deviations where the reward is normalized.
        normalize: whether the running mean is subtracted and the running standard deviation divided by.
    """

    weight: float = 1.0
    clip: float = math.inf
    normalize: bool = False

    def __post_init__(self):
        if not math.isfinite(self.weight):
            raise InputError(f"weight={self.weight} must be a finite number")
        if not self.clip > 0:
            raise InputError(f"clip={self.clip} must be above 0; inf stands for no clip")

    @property
    def shaped(self) -> bool:
        """True where the part is paid as something else than its weighted value."""
        return self.normalize or self.clip != math.inf


def part_shapings(
    functions: Sequence[Any],
    weights: Sequence[float] | None = None,
    clips: Sequence[float] | None = None,
    normalize: Sequence[bool] | None = None,
) -> list[PartShaping]:
    """Return the shaping of each reward, from lists with one entry for each, or from its own arguments.

    Raises `InputError` for a list of another length, and for a number that a reward has from both.
    """
    own = [getattr(function, "shaping", None) or PartShaping() for function in functions]
    lists = {"weight": ("reward_weights", weights), "clip": ("reward_clips", clips), "normalize": ("reward_normalize", normalize)}  # fmt: skip
    values: dict[str, list[Any]] = {}
    for name, (flag, given) in lists.items():
        of_rewards = [getattr(each, name) for each in own]
        if given is None:
            values[name] = of_rewards
            continue
        if len(given) != len(own):
            what = "values" if name == "normalize" else "numbers"
            raise InputError(f"{flag} has {len(given)} {what} for {len(own)} rewards. Give one for each")
        if any(each != getattr(PartShaping(), name) for each in of_rewards):
            raise InputError(
                f"{flag}={list(given)} is invalid: a named reward has {name}= of its own. Keep one of both."
            )
        values[name] = list(given)
    return [PartShaping(*each) for each in zip(values["weight"], values["clip"], values["normalize"], strict=True)]
