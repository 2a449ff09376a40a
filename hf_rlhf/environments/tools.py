"""Episodes in which the policy may call Python functions before it answers."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hf_rlhf.environments.base import Turn
from hf_rlhf.environments.tool_calls import ToolCall, calls_in, tool_schemas
from hf_rlhf.errors import InputError
from hf_rlhf.types import Message, Prompt


class ToolUse:
    """An episode in which the policy calls tools, reads their results, and ends with an answer that calls none.

    The chat template shows the tools to the policy. Their results are messages of the role `tool`, which are never
    trained on. Only the functions that are given here can run, in this process and with its rights. An error of a call
    is its result.

    Args:
        tools: functions with type hints and a docstring that describes each argument, as
            `transformers.utils.get_json_schema` reads them.
        max_calls: of an episode. Further calls get a message instead of a result, and an episode whose policy calls
            on after that ends by this limit (`at_limit`).
        max_result_length: characters of a result that are shown.
        error_penalty: subtracted from the reward for each call that cannot be read or raises an error.

    Raises `InputError` for a function without a schema, and for two of the same name.
    """

    def __init__(
        self,
        tools: Sequence[Callable[..., Any]] = (),
        *,
        max_calls: int = 8,
        max_result_length: int = 2000,
        error_penalty: float = 0.0,
    ):
        rules = {
            "max_calls": (max_calls >= 1, max_calls, "at least 1"),
            "max_result_length": (max_result_length >= 1, max_result_length, "at least 1"),
            "error_penalty": (error_penalty >= 0, error_penalty, "0 or above: it is subtracted"),
        }
        for name, (holds, value, rule) in rules.items():
            if not holds:
                raise InputError(f"{name}={value} is invalid: it must be {rule}.")
        self.tools = list(tools)
        self.max_calls, self.max_result_length, self.error_penalty = max_calls, max_result_length, error_penalty
        names = [schema["function"]["name"] for schema in tool_schemas(self.tools)]
        if len(set(names)) < len(names):
            raise InputError(f"tools={', '.join(names)} is invalid: two have the same name. Rename one.")
        self._functions: dict[str, Callable[..., Any]] = dict(zip(names, self.tools, strict=True))
        self._calls = self._errors = 0
        self._over = True

    def reset(self, row: Mapping[str, Any], rng: random.Random) -> Prompt:
        """Begin with the row's prompt."""
        self._calls = self._errors = 0
        self._over = False
        return row["prompt"]

    def step(self, completion: str, tool_calls: Sequence[ToolCall] | None = None) -> Turn:
        """Run the calls of a completion, or end the episode where it has none.

        Args:
            completion: of the policy.
            tool_calls: those that the tokenizer's own parser found, instead of what is read off the text.
        """
        if self._over:
            raise RuntimeError("the episode is over")
        calls = calls_in(completion) if tool_calls is None else list(tool_calls)
        if not calls:
            return self._end(Turn(reward=self.final_reward(completion), terminated=True, info=self._info()))
        spent = self._calls >= self.max_calls
        errors = self._errors
        messages = tuple(self._result(call) for call in calls)
        paid = -self.error_penalty * (self._errors - errors)
        if not spent:
            return Turn(messages, reward=paid, info=self._info())
        end = self.at_limit()
        return replace(end, messages=messages, reward=end.reward + paid)

    def final_reward(self, completion: str) -> float:
        """Return the reward of the answer; subclasses pay, and reward functions may do so besides.

        Where a limit ends the episode, the policy has not answered, and `completion` is empty.
        """
        return 0.0

    def at_limit(self) -> Turn:
        """End the episode by a limit: truncated, but for a subclass that pays at the end, and has paid then."""
        if not self.pays_at_end:
            return self._end(Turn(truncated=True, info=self._info()))
        return self._end(Turn(reward=self.final_reward(""), terminated=True, info=self._info()))

    @property
    def pays_at_end(self) -> bool:
        """True if `final_reward` is not this class's own."""
        return type(self).final_reward is not ToolUse.final_reward

    def _end(self, turn: Turn) -> Turn:
        self._over = True
        return turn

    def _info(self) -> dict[str, float | str]:
        return {"tool_calls": float(self._calls), "tool_errors": float(self._errors)}

    def _result(self, call: ToolCall) -> Message:
        """Return the result of a call as a message. Its id has the nine characters that Mistral's templates want."""
        self._calls += 1
        text, failed = self._run(call)
        self._errors += failed
        if len(text) > self.max_result_length:
            text = f"{text[: self.max_result_length]} ... ({len(text) - self.max_result_length} more characters)"
        message: Any = {"role": "tool", "content": text, "name": call.name, "tool_call_id": f"call{self._calls:05d}"}
        return message

    def _run(self, call: ToolCall) -> tuple[str, bool]:
        """Return what a call gives, as text, and whether it failed."""
        if self._calls > self.max_calls:
            return f"Error: only {self.max_calls} calls are allowed. Answer now.", False
        if call.unreadable:
            return f"Error: the call cannot be read: {call.unreadable}.", True
        if call.name not in self._functions:
            return f"Error: there is no tool {call.name!r}. There are {', '.join(self._functions)}.", True
        try:
            found = self._functions[call.name](**call.arguments)
            return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, default=str), False
        except Exception as error:  # what a tool raises, the policy reads
            return f"Error: {type(error).__name__}: {error}", True
