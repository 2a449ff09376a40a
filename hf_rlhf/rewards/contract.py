"""Call reward functions by TRL's contract, check what they give back, and add them up.

The contract: `fn(prompts, completions, completion_ids=..., **columns) -> list[float | None]`, sync or async. `None` is
unscored: the completion then does not count. Anything else that is not a finite number ends the run.
"""

import asyncio
import inspect
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hf_rlhf.errors import InputError
from hf_rlhf.types import Trajectory

RewardFunction = Callable[..., Any]


class Rewards:
    """Named reward functions and their weights.

    Args:
        functions: callables by TRL's contract.
        weights: one a function; 1.0 each by default.
    """

    def __init__(self, functions: Sequence[RewardFunction], weights: Sequence[float] | None = None):
        if not functions:
            raise InputError("no reward: give at least one reward function or reward model")
        self.functions = list(functions)
        self.weights = [1.0] * len(functions) if weights is None else list(weights)
        if len(self.weights) != len(self.functions):
            raise InputError(
                f"reward_weights has {len(self.weights)} numbers for {len(self.functions)} rewards; give one for each"
            )
        self.names = _unique([reward_name(function) for function in functions])

    def score(self, trajectories: Sequence[Trajectory]) -> None:
        """Fill `rewards`, `reward` and `score` of every trajectory. One that no reward scored keeps `reward=None`."""
        if not trajectories:
            return
        for name, function in zip(self.names, self.functions, strict=True):
            values = _checked(name, _call(function, trajectories), trajectories)
            for trajectory, value in zip(trajectories, values, strict=True):
                trajectory.rewards[name] = value
        for trajectory in trajectories:
            parts = [
                weight * value
                for weight, name in zip(self.weights, self.names, strict=True)
                if (value := trajectory.rewards[name]) is not None
            ]
            trajectory.reward = trajectory.score = sum(parts) if parts else None


def reward_name(function: RewardFunction) -> str:
    """The name under which a reward is logged: its `name`, or the function's own."""
    return getattr(function, "name", None) or getattr(function, "__name__", type(function).__name__)


def as_completion(trajectory: Trajectory) -> str | list[dict[str, str]]:
    """The completion as rewards see it: text for a text prompt, one assistant message for a conversation."""
    if isinstance(trajectory.prompt, str):
        return trajectory.text
    return [{"role": "assistant", "content": trajectory.text}]


def _call(function: RewardFunction, trajectories: Sequence[Trajectory]) -> Any:
    columns = {key for trajectory in trajectories for key in trajectory.row} - {"prompt", "prompt_ids"}
    if taken := columns & {"prompts", "completions", "completion_ids"}:
        raise InputError(
            f"the data set's columns {sorted(taken)} have the names of arguments that every reward gets; rename them"
        )
    result = function(
        prompts=[trajectory.prompt for trajectory in trajectories],
        completions=[as_completion(trajectory) for trajectory in trajectories],
        completion_ids=[trajectory.completion.ids for trajectory in trajectories],
        **{key: [trajectory.row.get(key) for trajectory in trajectories] for key in sorted(columns)},
    )
    if not inspect.isawaitable(result):
        return result
    with ThreadPoolExecutor(1) as pool:  # a notebook's own thread has an event loop running already
        return pool.submit(asyncio.run, _awaited(result)).result()


async def _awaited(result: Any) -> Any:
    return await result


def _checked(name: str, values: Any, trajectories: Sequence[Trajectory]) -> list[float | None]:
    if values is None or isinstance(values, str) or not hasattr(values, "__len__"):
        raise InputError(f"reward {name!r} returned {type(values).__name__}; it must return a list of numbers or None")
    if len(values) != len(trajectories):
        raise InputError(
            f"reward {name!r} returned {len(values)} values for {len(trajectories)} completions; "
            "it must return one for each, with None where it cannot score"
        )
    return [_number(name, value, trajectory) for value, trajectory in zip(values, trajectories, strict=True)]


def _number(name: str, value: Any, trajectory: Trajectory) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(
            f"reward {name!r} returned {value!r}; return a finite number, or None for a completion that cannot be "
            f"scored\n  prompt: {_shown(trajectory.prompt)}\n  completion: {_shown(trajectory.text)}"
        )
    return number


def _shown(content: Any, limit: int = 300) -> str:
    text = content if isinstance(content, str) else repr(content)
    return repr(text if len(text) <= limit else text[:limit] + "…")


def _unique(names: list[str]) -> list[str]:
    """Number the names that occur more than once: `length, length` -> `length, length_2`."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return unique
