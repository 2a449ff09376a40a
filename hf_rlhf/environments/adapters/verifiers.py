"""Environments of verifiers 0.1: `MultiTurnEnv` and what is derived from it, single turns and tools included.

From version 0.2 on, verifiers runs an agent against an API server by itself, and no turn of it can be taken from
outside.
"""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from hf_rlhf.environments.adapters.coroutines import run_together
from hf_rlhf.environments.base import EnvFactory, Turn
from hf_rlhf.environments.tool_calls import ToolCall, calls_in
from hf_rlhf.errors import InputError
from hf_rlhf.types import Message, Prompt

_INPUTS = ("prompt", "answer", "info", "example_id")
_HOOKS = ("init_state", "setup_state", "is_completed", "get_prompt_messages", "add_trajectory_step", "rubric")


def verifiers_rows(env: Any) -> list[dict[str, Any]]:
    """Return the training rows of a verifiers environment, with `prompt` and what its rubric reads."""
    return [{name: row[name] for name in _INPUTS if name in row} for row in env.get_dataset()]


def from_verifiers(env: Any) -> EnvFactory:
    """Return the environment of a verifiers environment, whose rubric scores each episode at its end, limits included.

    One that verifiers says is truncated is truncated. Any other end is real, since it was scored. A tool's schema
    reaches the chat template.

    Raises `InputError` for what has not the methods of verifiers 0.1, and for rewards of whole groups.
    """
    if missing := [name for name in _HOOKS if not hasattr(env, name)]:
        raise InputError(
            f"environment={type(env).__name__} is invalid: it has no {', '.join(missing)}, so it is no MultiTurnEnv of"
            " verifiers 0.1. Give one."
        )
    return _VerifiersFactory(env)


class _VerifiersFactory:
    def __init__(self, env: Any):
        self.env = env
        self.__name__ = type(env).__name__

    def __call__(self) -> "_VerifiersEpisode":
        return _VerifiersEpisode(self.env)


class _VerifiersEpisode:
    """One rollout of a verifiers environment, turn by turn as its `rollout` takes them."""

    def __init__(self, env: Any):
        self.env = env
        self.tools: list[dict[str, Any]] = []
        self._state: Any = None
        self._prompt: list[Any] = []
        self._over = True

    def reset(self, row: Mapping[str, Any], rng: random.Random) -> Prompt:
        """Set the state up for the row."""
        given = {name: row[name] for name in _INPUTS if row.get(name) is not None}
        [self._prompt] = run_together([self._begin({"example_id": 0, **given})])
        self.tools = [_schema(tool) for tool in self._state.get("tool_defs") or ()]
        self._over = False
        return row["prompt"] if isinstance(row["prompt"], str) else list(map(_message, self._prompt))

    def step(self, completion: str, tool_calls: Sequence[ToolCall] | None = None) -> Turn:
        """Give a completion to the environment."""
        if self._over:
            raise RuntimeError("the episode is over, or was not begun by reset")
        calls = calls_in(completion) if tool_calls is None and self.tools else tool_calls or ()
        [turn] = run_together([self._take(completion, [call for call in calls if not call.unreadable])])
        self._over = turn.ends
        return turn

    def at_limit(self) -> Turn:
        """Score the episode as it is."""
        self._over = True
        [turn] = run_together([self._end()])
        return turn

    async def _begin(self, given: dict[str, Any]) -> list[Any]:
        self._state = await self.env.init_state(given, _client(), "policy", None)
        await self.env.setup_state(self._state)
        return list(await self.env.get_prompt_messages(self._state))

    async def _take(self, completion: str, calls: Sequence[ToolCall]) -> Turn:
        from verifiers.types import AssistantMessage, TrajectoryStep
        from verifiers.types import ToolCall as TheirCall

        state, number = self._state, len(self._state["trajectory"])
        theirs = [
            TheirCall(id=f"call{number:02d}{i:03d}", name=call.name, arguments=json.dumps(dict(call.arguments)))
            for i, call in enumerate(calls)
        ]
        answer = AssistantMessage(content=completion, tool_calls=theirs or None)
        fields: Any = {
            "prompt": self._prompt, "completion": [answer], "response": None, "tokens": None,
            "reward": None, "advantage": None,
            "is_truncated": False, "trajectory_id": state["trajectory_id"], "extras": {},
        }  # fmt: skip
        await self.env.add_trajectory_step(state, TrajectoryStep(**fields))
        if await self.env.is_completed(state):
            return await self._end()
        following = list(await self.env.get_prompt_messages(state))
        if state.get("final_env_response") is not None and await self.env.is_completed(state):
            return await self._end()
        added = following[len(self._prompt) + 1 :]
        self._prompt = following
        return Turn(tuple(map(_message, added)))

    async def _end(self) -> Turn:
        state = self._state
        await self.env.cleanup(state)
        await self.env.rubric.score_rollout(state)
        if (error := state.get("error")) is not None:
            raise RuntimeError(f"the environment reports an error: {error}")
        truncated = bool(state.get("is_truncated"))
        info = {name: float(value) for name, value in (state["metrics"] or {}).items()}
        return Turn(reward=float(state["reward"]), terminated=not truncated, truncated=truncated, info=info)


def _message(message: Any) -> Message:
    """Return a message of verifiers, a pydantic model or a dict, as a chat template takes it."""
    keys = message if isinstance(message, Mapping) else message.model_dump(exclude_none=True)
    return {**keys, "content": _text(keys.get("content"))}  # pyright: ignore[reportReturnType]


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.get("text", "") for part in content)


def _schema(tool: Any) -> dict[str, Any]:
    keys = tool if isinstance(tool, Mapping) else tool.model_dump()
    function = {name: keys[name] for name in ("name", "description", "parameters") if name in keys}
    return {"type": "function", "function": function}


def _client() -> Any:
    """Return a client that can be asked nothing: the policy's completions come from outside."""
    from verifiers.clients import Client

    def never(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the policy is not asked by verifiers")

    methods: dict[str, Any] = dict.fromkeys(Client.__abstractmethods__, never)
    return type("NoClient", (Client,), methods)(None)
