"""Classes for the `environment_factory` of trl's GRPOTrainer, as environments."""

import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_rlhf.environments.adapters.coroutines import run_together
from hf_rlhf.environments.base import EnvFactory
from hf_rlhf.environments.gym_text import with_text
from hf_rlhf.environments.tools import ToolUse
from hf_rlhf.errors import InputError
from hf_rlhf.types import Prompt


def from_trl_environment(
    factory: Callable[[], Any], *, tools: Sequence[Callable[..., Any]] = (), **settings: Any
) -> EnvFactory:
    """Return the environment of a class that was written for trl's `environment_factory`.

    As in trl, `reset(**row)` returns None or a text that is put behind the user's last message, the other public
    methods are tools, and `get_reward()` is called once at the end, be it the policy's answer or a limit. Without
    `get_reward`, give reward functions.

    Args:
        factory: the class, or a function that makes an object of it.
        tools: functions that are tools besides the methods.
        settings: `max_calls`, `max_result_length` and `error_penalty` of `ToolUse`.

    Raises `InputError` for a class without `reset`, and for what `ToolUse` refuses.
    """
    return _TRLFactory(factory, list(tools), settings)


class _TRLFactory:
    def __init__(self, factory: Callable[[], Any], tools: list[Callable[..., Any]], settings: Mapping[str, Any]):
        self.factory, self.tools, self.settings = factory, tools, settings
        self.__name__ = getattr(factory, "__name__", type(factory).__name__)

    def __call__(self) -> "_TRLEnvironment":
        return _TRLEnvironment(self.factory(), self.tools, self.settings)


class _TRLEnvironment(ToolUse):
    """One object of a class for trl."""

    def __init__(self, env: Any, tools: Sequence[Callable[..., Any]], settings: Mapping[str, Any]):
        if not callable(getattr(env, "reset", None)):
            raise InputError(
                f"environment={type(env).__name__} is invalid: it has no method reset. Write reset(self, **row)."
            )
        self.env = env
        super().__init__([*tools, *_public_methods(env)], **settings)

    def reset(self, row: Mapping[str, Any], rng: random.Random) -> Prompt:
        """Reset the object with the row's columns, and put what it returns behind the prompt."""
        prompt = super().reset(row, rng)
        said = _result(self.env.reset(**{name: value for name, value in row.items() if name != "prompt_ids"}))
        if said is not None and not isinstance(said, str):
            raise TypeError(f"{type(self.env).__name__}.reset returned {type(said).__name__}, and not a text or None")
        return prompt if said is None else with_text(prompt, said, separator="")

    def final_reward(self, completion: str) -> float:
        """Return what the object's `get_reward` gives, 0 where it has none."""
        get_reward = getattr(self.env, "get_reward", None)
        return 0.0 if get_reward is None else float(_result(get_reward()))

    @property
    def pays_at_end(self) -> bool:
        """True if the object has `get_reward`."""
        return hasattr(self.env, "get_reward")


def _public_methods(env: Any) -> list[Callable[..., Any]]:
    """Return the methods that trl makes tools of, in its order. A listing of the object would evaluate properties."""
    names = [name for name, _ in inspect.getmembers(type(env), predicate=inspect.isfunction)]
    return [getattr(env, name) for name in names if name not in ("reset", "get_reward") and not name.startswith("_")]


def _result(value: Any) -> Any:
    return run_together([value])[0] if inspect.isawaitable(value) else value
