"""TRL's contract for reward functions, and the weighted sum of several.

The contract: `fn(prompts, completions, ...) -> list`, sync or async, with one value for each completion: a number; a
list of numbers, one for each of its tokens; or None, unscored. Anything else, NaN and infinity included, ends the run.

A completion is the whole answer: where the chat template begins it in the generation prompt (`<think>`), it begins so.

A function that names them in its signature, or takes `**kwargs`, also gets

- `completion_ids`: the sampled tokens alone, B lists;
- every other column of the dataset by its name, a list of B;
- `trainer_state`: the `transformers.TrainerState` of the run, or None outside of one;
- `log_extra(column, values)`: keep a value for each completion in `Trajectory.extra` and in samples.jsonl;
- `log_metric(name, value)`: log a number; those of one name are averaged, over all ranks together.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_rlhf.errors import InputError
from hf_rlhf.rewards.calls import call_all, required_arguments
from hf_rlhf.rewards.values import Value, checked_values, finite_number
from hf_rlhf.types import Trajectory

if TYPE_CHECKING:
    from transformers import TrainerState

RewardFunction = Callable[..., Any]

_RESERVED = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}


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
                f"reward_weights has {len(self.weights)} numbers for {len(self.functions)} rewards. Give one for each"
            )
        self.names = _unique([reward_name(function) for function in functions])

    def require_columns(self, columns: Sequence[str]) -> None:
        """Raise `InputError` for a reward that requires an argument beyond the contract and the dataset's columns."""
        for function, name in zip(self.functions, self.names, strict=True):
            there = sorted(set(columns) - {"prompt", "prompt_ids"})  # which rewards get as `prompts`
            if missing := required_arguments(function) - _RESERVED - set(there):
                raise InputError(
                    f"reward {name!r} takes {', '.join(sorted(missing))}, and the data set has no such column (besides"
                    f" the prompt it has {', '.join(there) or 'none'}). Add it, or give the argument a default"
                )

    def score(
        self, trajectories: Sequence[Trajectory], trainer_state: "TrainerState | None" = None
    ) -> dict[str, list[float]]:
        """Fill in `rewards`, `reward`, `token_rewards`, `score`, `token_scores` and `extra` of every trajectory.

        `reward` is the weighted sum of all rewards, `token_rewards` the part of it given by token, `score` the rest.
        A trajectory that no reward scored has None for each of them.

        Returns the numbers that the functions logged with `log_metric`, by name. Their mean is for the caller to take,
        who knows those of other ranks.
        """
        if not trajectories:
            return {}
        log = _Log(len(trajectories))
        columns = _columns(trajectories)
        self.require_columns(columns)
        arguments = [_arguments(trajectories, columns, trainer_state, log, name) for name in self.names]
        results = call_all(self.functions, self.names, arguments)
        values = [checked_values(name, result, trajectories) for name, result in zip(self.names, results, strict=True)]
        for b, trajectory in enumerate(trajectories):
            self._add_up(trajectory, [of_reward[b] for of_reward in values])
            trajectory.extra = {column: extra[b] for column, extra in log.extras.items()}
        return log.metrics

    def _add_up(self, trajectory: Trajectory, values: Sequence[Value]) -> None:
        whole: list[float] = []  # weighted rewards of the completion
        by_token: list[Tensor] = []  # and of its tokens, (T,) each
        for name, weight, value in zip(self.names, self.weights, values, strict=True):
            if isinstance(value, list):
                trajectory.rewards[name] = math.fsum(value)
                by_token.append(weight * torch.tensor(value, dtype=torch.float64))
            else:
                trajectory.rewards[name] = value
                if value is not None:
                    whole.append(weight * value)
        trajectory.token_rewards = trajectory.token_scores = torch.stack(by_token).sum(dim=0) if by_token else None
        trajectory.score = sum(whole, 0.0) if whole or by_token else None
        trajectory.reward = trajectory.score
        if trajectory.score is not None and trajectory.token_rewards is not None:
            trajectory.reward = trajectory.score + math.fsum(trajectory.token_rewards.tolist())


def reward_name(function: RewardFunction) -> str:
    """Return the name under which a reward is logged: its `name`, or the function's own."""
    name = getattr(function, "name", None) or getattr(function, "__name__", None)
    if name is None and isinstance(function, partial):
        return reward_name(function.func)
    return (name or type(function).__name__).strip("<>")


def as_completion(trajectory: Trajectory) -> str | list[dict[str, str]]:
    """Return the completion as rewards see it: text for a text prompt, one assistant message for a conversation."""
    if isinstance(trajectory.prompt, str):
        return trajectory.text
    return [{"role": "assistant", "content": trajectory.text}]


class _Log:
    """Columns and metrics that the rewards log about `completions` completions during one call of `Rewards.score`."""

    def __init__(self, completions: int):
        self.completions = completions
        self.extras: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[float]] = {}

    def extra(self, reward: str, column: str, values: Sequence[Any]) -> None:
        if len(values) != self.completions:
            raise InputError(
                f"reward {reward!r} logged {len(values)} values as {column!r} for {self.completions} completions; "
                "log_extra takes one for each"
            )
        if column in self.extras:
            raise InputError(
                f"reward {reward!r} logged {column!r}, which exists already. log_extra takes each name once"
            )
        self.extras[column] = [value.tolist() if hasattr(value, "tolist") else value for value in values]

    def metric(self, reward: str, name: str, value: float) -> None:
        number = finite_number(value)
        if number is None:
            raise InputError(f"reward {reward!r} logged {value!r} as {name!r}; log_metric takes a finite number")
        self.metrics.setdefault(name, []).append(number)


def _columns(trajectories: Sequence[Trajectory]) -> list[str]:
    columns = {key for trajectory in trajectories for key in trajectory.row} - {"prompt", "prompt_ids"}
    if taken := columns & _RESERVED:
        raise InputError(
            f"the dataset's columns {sorted(taken)} have the names of arguments that every reward gets. Rename them"
        )
    return sorted(columns)


def _arguments(
    trajectories: Sequence[Trajectory],
    columns: Sequence[str],
    trainer_state: "TrainerState | None",
    log: _Log,
    name: str,
) -> dict[str, Any]:
    """Return all that the reward `name` may ask for, in lists that it may change."""
    return {
        "prompts": [trajectory.prompt for trajectory in trajectories],
        "completions": [as_completion(trajectory) for trajectory in trajectories],
        "completion_ids": [list(trajectory.completion.ids) for trajectory in trajectories],
        "trainer_state": trainer_state,
        "log_extra": partial(log.extra, name),
        "log_metric": partial(log.metric, name),
        **{column: [trajectory.row.get(column) for trajectory in trajectories] for column in columns},
    }


def _unique(names: list[str]) -> list[str]:
    """Append a number to names that occur more than once: `length, length` -> `length, length_2`."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return unique
