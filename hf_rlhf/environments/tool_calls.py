"""Calls of tools: what the chat template is told about tools, and what a policy wrote to call them."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from hf_rlhf.errors import InputError

_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_THOUGHTS = re.compile(r"<(think|thinking|reasoning)>.*?(?:</\1>|\Z)", re.DOTALL)
_FENCED = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)


class ToolCall(NamedTuple):
    """A call that a policy wrote, or why it cannot be read."""

    name: str
    arguments: Mapping[str, Any]
    unreadable: str = ""


def tool_schemas(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Return tools as chat templates take them: JSON schemas as they are, those of functions by their docstrings.

    Raises `InputError` for a function without a docstring or type hints.
    """
    return [dict(tool) if isinstance(tool, Mapping) else _schema(tool) for tool in tools]


def _schema(function: Callable[..., Any]) -> dict[str, Any]:
    return _schema_of(getattr(function, "__func__", function))  # a method is another object each time it is read


@lru_cache(maxsize=256)
def _schema_of(function: Callable[..., Any]) -> dict[str, Any]:
    from transformers.utils import get_json_schema

    try:
        return get_json_schema(function)
    except Exception as error:  # transformers raises classes of its own, and those of inspect and typing
        name = getattr(function, "__name__", repr(function))
        raise InputError(
            f"tools={name} is invalid: {error}. Give it type hints, and a docstring with an Args section that describes"
            " each argument."
        ) from error


def calls_in(text: str) -> list[ToolCall]:
    """Return the calls in what a policy wrote, besides its thoughts.

    Read are `<tool_call>{...}</tool_call>`, several of them, and an answer that is JSON and nothing else: an object
    with a name and arguments (or parameters), or a list of such. JSON of another shape is no call.
    """
    text = _THOUGHTS.sub("", text).strip()
    tagged = _TAGGED.findall(text)
    if tagged:
        return [call for each in tagged for call in _read_tagged(each)]
    fenced = _FENCED.match(text)
    return [call for found in _decoded_objects(fenced[1] if fenced else text) if (call := _as_call(found)) is not None]


def calls_by_tokenizer(
    tokenizer, prefix: Sequence[int], ids: Sequence[int], tools: Sequence[Any] | None
) -> list[ToolCall] | None:
    """Return the calls that the tokenizer's own `parse_response` reads; None where it has no schema, or reads none.

    Args:
        tokenizer: of the policy.
        prefix: the ids before the completion.
        ids: of the completion.
        tools: as JSON schemas, by which arguments get their types.
    """
    if getattr(tokenizer, "response_template", None) is None:
        return None
    try:
        message = tokenizer.parse_response(list(ids), prefix=list(prefix), tools=list(tools or ()) or None)
        calls = [_as_call(each) for each in message.get("tool_calls") or ()]
    except Exception:  # what a policy writes is anything; the plain reader says what is wrong with it
        return None
    return None if None in calls else [call for call in calls if call is not None] or None


def _read_tagged(text: str) -> list[ToolCall]:
    try:
        found = json.loads(text)
    except ValueError as error:
        return [ToolCall("", {}, f"it is not JSON ({error})")]
    calls = [_as_call(each) for each in (found if isinstance(found, list) and found else [found])]
    return [call or ToolCall("", {}, "it has no name and arguments") for call in calls]


def _decoded_objects(text: str) -> list[Any]:
    if not text.startswith(("{", "[")):
        return []
    try:
        found = json.loads(text)
    except ValueError:
        return []
    return found if isinstance(found, list) else [found]


def _as_call(found: Any) -> ToolCall | None:
    """Return the call of an object with a name and arguments, which may be text that holds JSON."""
    if not isinstance(found, Mapping):
        return None
    found = found["function"] if isinstance(found.get("function"), Mapping) else found
    name, arguments = found.get("name"), found.get("arguments", found.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return ToolCall(str(name), {}, "its arguments are not JSON")
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        return None
    return ToolCall(name, arguments)
