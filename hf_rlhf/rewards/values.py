"""Check what a reward gave back: for each completion a number, a number for each of its tokens, or None."""

import math
from collections.abc import Sequence
from typing import Any

from hf_rlhf.errors import InputError
from hf_rlhf.types import Trajectory

Value = float | list[float] | None


class Unkept(float):
    """A reward that `RewardCache` does not keep, such as one that a busy machine may have caused."""


def checked_values(name: str, values: Any, trajectories: Sequence[Trajectory]) -> list[Value]:
    """Return one value for each trajectory, with tensors and arrays turned into numbers.

    Raises `InputError` for anything but finite numbers, lists as long as the completion's ids, and None.
    """
    if values is None or isinstance(values, str) or not hasattr(values, "__len__"):
        raise InputError(f"reward {name!r} returned {type(values).__name__}. It must return a list of numbers or None.")
    if len(values) != len(trajectories):
        raise InputError(
            f"reward {name!r} returned {len(values)} values for {len(trajectories)} completions. "
            "It must return one for each, and None where it has no reward."
        )
    return [_require_value(name, value, trajectories[b], b) for b, value in enumerate(values)]


def finite_number(value: Any) -> float | None:
    """Return `value` as a float, or None when it is no finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def episode(prompt: Any, completion: Any) -> str:
    """Return two lines that show in an error message which prompt and completion it is about."""
    return f"\n  prompt: {_shortened(prompt)}\n  completion: {_shortened(completion)}"


def _require_value(name: str, value: Any, trajectory: Trajectory, b: int) -> Value:
    if value is None:
        return None
    plain = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(plain, (list, tuple)):
        return _require_token_numbers(name, plain, trajectory, b)
    number = finite_number(plain)
    if number is None:
        raise InputError(
            f"reward {name!r} returned {value!r}. Return a finite number, or None where there is no "
            f"reward.{_shown_episode(trajectory, b)}"
        )
    return number


def _require_token_numbers(name: str, values: Sequence[Any], trajectory: Trajectory, b: int) -> list[float]:
    tokens = len(trajectory.completion.ids)
    if len(values) != tokens:
        raise InputError(
            f"reward {name!r} returned a list of {len(values)} for a completion of {tokens} tokens. Give a number for "
            "each of its completion_ids, or a single number for all of it."
            f"{_shown_episode(trajectory, b)}"
        )
    numbers = []
    for position, value in enumerate(values):
        number = finite_number(value)
        if number is None:
            raise InputError(
                f"reward {name!r} returned {value!r} for the token at position {position} of {tokens}, counted from 0. "
                f"Give a finite number for each token.{_shown_episode(trajectory, b)}"
            )
        numbers.append(number)
    return numbers


def _shown_episode(trajectory: Trajectory, b: int) -> str:
    return f"{episode(trajectory.prompt, trajectory.text)}\n  number: {b}, counted from 0"


def _shortened(content: Any, limit: int = 300) -> str:
    text = content if isinstance(content, str) else repr(content)
    return repr(text if len(text) <= limit else text[:limit] + "…")
