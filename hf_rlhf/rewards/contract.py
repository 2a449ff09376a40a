"""TRL's contract for reward functions, and the weighted sum of several.

The contract: `fn(prompts, completions, ...) -> list`, sync or async, with one value for each completion: a number; a
list of numbers, one for each of its tokens; or None for no reward. Anything else ends the run, NaN and infinity too.

A completion is the whole answer: where the chat template begins it in the generation prompt (`<think>`), it begins so.

A function that names them in its signature, or takes `**kwargs`, also gets

- `completion_ids`: the sampled tokens alone, B lists;
- every other column of the dataset by its name, a list of B;
- `trainer_state`: the `transformers.TrainerState` of the run, or None outside of one;
- `log_extra(column, values)`: keep a value for each completion in `Reward.extra` and in samples.jsonl;
- `log_metric(name, value)`: log a number; those of one name are averaged, over all ranks together.

A function with the attribute `cache_key` may be kept in a cache (`hf_rlhf.rewards.cache`), and is then called on the
completions that the cache does not hold.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from hf_rlhf.errors import InputError, did_you_mean
from hf_rlhf.rewards.cache import RewardCache
from hf_rlhf.rewards.cached_calls import PendingCall, known_identities
from hf_rlhf.rewards.calls import call_all, required_arguments
from hf_rlhf.rewards.parts import part_shapings
from hf_rlhf.rewards.values import Value, finite_number
from hf_rlhf.types import Reward, Trajectory

if TYPE_CHECKING:
    from transformers import TrainerState

RewardFunction = Callable[..., Any]

_RESERVED = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}


class ComputedRewards(NamedTuple):
    """The rewards of `B` completions, and the numbers that the functions logged with `log_metric`, by name."""

    rewards: list[Reward]
    metrics: dict[str, list[float]]  # of this rank's completions; their mean takes those of other ranks too
    cached: dict[str, list[float]]  # of each reward that a cache keeps: 1.0 for a completion that it held, else 0.0


class Rewards:
    """Named reward functions and their weights.

    Args:
        functions: callables by TRL's contract.
        weights: one a function; 1.0 each by default, or what a named reward was given; 0 measures it, and pays nothing.
        clips, normalize: one a function, likewise; see `PartShaping`. Scores have these, and not the rewards.
    """

    def __init__(
        self,
        functions: Sequence[RewardFunction],
        weights: Sequence[float] | None = None,
        clips: Sequence[float] | None = None,
        normalize: Sequence[bool] | None = None,
    ):
        if not functions:
            raise InputError(
                "reward_funcs=[] is invalid: there is no reward. Give at least one reward function or reward model."
            )
        self.functions = list(functions)
        self.names = _unique([reward_name(function) for function in functions])
        shapings = part_shapings(self.functions, weights, clips, normalize)
        self.weights = [shaping.weight for shaping in shapings]
        self.shapings = dict(zip(self.names, shapings, strict=True))
        self.cache: RewardCache | None = None
        self.identities: dict[str, str] = {}

    def measure_only(self, name: str) -> None:
        """Let a reward be measured and not paid."""
        self.weights[self.names.index(name)] = 0.0
        self.shapings[name] = replace(self.shapings[name], weight=0.0)

    def use_cache(self, cache: RewardCache) -> None:
        """Keep the values of all functions that have an identity in `cache`, and take from it those that it holds.

        Raises `InputError` for a `cache_key` that is no text.
        """
        self.cache = cache
        self.identities = known_identities(dict(zip(self.names, self.functions, strict=True)))

    def require_columns(self, columns: Sequence[str]) -> None:
        """Raise `InputError` for a reward that requires an argument beyond the contract and the dataset's columns."""
        for function, name in zip(self.functions, self.names, strict=True):
            there = sorted(set(columns) - {"prompt", "prompt_ids"})  # which rewards get as `prompts`
            required = required_arguments(function) | set(getattr(function, "required_columns", ()))
            if missing := required - _RESERVED - set(there):
                hints = [meant for each in sorted(missing) if (meant := did_you_mean(each, there))]
                raise InputError(
                    f"reward {name!r} takes {', '.join(sorted(missing))}, and the dataset has no such column (besides"
                    f" the prompt it has {', '.join(there) or 'none'}). {''.join(hints)}Add it, or give the argument a"
                    " default."
                )

    def compute(
        self,
        trajectories: Sequence[Trajectory],
        trainer_state: "TrainerState | None" = None,
        *,
        with_ids: bool = True,
    ) -> ComputedRewards:
        """Call all reward functions on `B` trajectories and return one `Reward` for each.

        Its `total` is the weighted sum of all parts, and None where no function gave the completion a reward.
        Without `with_ids`, for completions that are text alone, no function gets `completion_ids`.
        """
        if not trajectories:
            return ComputedRewards([], {}, {})
        log = _Log(len(trajectories))
        columns = _columns(trajectories)
        self.require_columns(columns)
        calls = []
        for name, function in zip(self.names, self.functions, strict=True):
            arguments = _arguments(trajectories, columns, trainer_state, log, name)
            if not with_ids:
                del arguments["completion_ids"]
            calls.append(PendingCall(name, function, arguments, trajectories))
        for call in calls:
            if self.cache is not None and call.name in self.identities:
                call.look_up(self.cache, self.identities[call.name], columns)
        called = [call for call in calls if call.rows]
        call_all(
            [call.function for call in called],
            [call.name for call in called],
            [call.arguments for call in called],
            [call.receive for call in called],
        )
        for call in calls:
            call.log_extras()
        values = [call.values for call in calls]
        rewards = [self._weighted_sum(completion_values) for completion_values in zip(*values, strict=True)]
        for b, reward in enumerate(rewards):
            reward.extra = {column: extra[b] for column, extra in log.extras.items()}
        return ComputedRewards(rewards, log.metrics, {call.name: call.hits for call in calls if call.hits})

    def _weighted_sum(self, values: Sequence[Value]) -> Reward:
        """Return the reward of one completion from the value that each function gave it.

        A weight of 0 measures a part and does not pay it: alone, it is no reward.
        """
        parts: dict[str, float | None] = {}
        whole: list[float] = []  # weighted values of the completion
        by_token: list[Tensor] = []  # and of its tokens, (T,) each
        for name, weight, value in zip(self.names, self.weights, values, strict=True):
            if isinstance(value, list):
                if self.shapings[name].normalize:
                    raise InputError(
                        f"reward_normalize=true is invalid for {name!r}, which gives a number for each token. Let it"
                        " give one number, or set use_score_scaling"
                    )
                parts[name] = math.fsum(value)
                if weight:
                    by_token.append(weight * torch.tensor(value, dtype=torch.float64))
            else:
                parts[name] = value
                if value is not None and weight:
                    whole.append(weight * value)
        if not by_token:
            return Reward(sum(whole, 0.0) if whole else None, parts)
        per_token = torch.stack(by_token).sum(dim=0)
        return Reward(sum(whole, 0.0) + math.fsum(per_token.tolist()), parts, per_token)


def reward_name(function: RewardFunction) -> str:
    """Return the name under which a reward is logged: its `name`, or the function's own."""
    name = getattr(function, "name", None) or getattr(function, "__name__", None)
    if name is None and isinstance(function, partial):
        return reward_name(function.func)
    return (name or type(function).__name__).strip("<>")


def as_completion(trajectory: Trajectory) -> str | list[dict[str, str]]:
    """Return the completion as rewards see it: text for a text prompt, the messages behind the prompt for a dialogue.

    Without an environment that is one message of the assistant.
    """
    messages = trajectory.messages or [{"role": "assistant", "content": trajectory.text}]
    if isinstance(trajectory.prompt, str):
        return "".join(message["content"] for message in messages)
    return [{"role": message["role"], "content": message["content"]} for message in messages]


class _Log:
    """Columns and metrics that reward functions log about `completions` completions in one call of `compute`."""

    def __init__(self, completions: int):
        self.completions = completions
        self.extras: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[float]] = {}

    def extra(self, reward: str, column: str, values: Sequence[Any]) -> None:
        if len(values) != self.completions:
            raise InputError(
                f"reward {reward!r} logged {len(values)} values as {column!r} for {self.completions} completions. "
                "log_extra takes one for each."
            )
        if column in self.extras:
            raise InputError(
                f"reward {reward!r} logged {column!r}, which exists already. log_extra takes each name once."
            )
        self.extras[column] = [value.tolist() if hasattr(value, "tolist") else value for value in values]

    def metric(self, reward: str, name: str, value: float) -> None:
        number = finite_number(value)
        if number is None:
            raise InputError(f"reward {reward!r} logged {value!r} as {name!r}. log_metric takes a finite number.")
        self.metrics.setdefault(name, []).append(number)


def _columns(trajectories: Sequence[Trajectory]) -> list[str]:
    columns = {key for trajectory in trajectories for key in trajectory.row} - {"prompt", "prompt_ids"}
    if taken := columns & _RESERVED:
        raise InputError(
            f"the dataset's columns {sorted(taken)} have the names of arguments that every reward gets. Rename them."
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
