r"""Rewards by name with arguments: `similarity:column=reference,weight=0.5`.

The text is `NAME`, or `NAME:ARGUMENT=VALUE,ARGUMENT=VALUE`. A value ends at the next comma that an `ARGUMENT=` follows,
so that `regex:pattern=\d{1,3}` needs no quotes. A value in single or double quotes ends at its closing quote: nothing
between them is special (a backslash is a backslash), and the quote itself is written twice. Spaces around names and
unquoted values do not count.

To add a reward, add a line to `REWARDS`: its name, and `module:factory`. A factory is a class or a function of keyword
arguments whose annotations are `str`, `int`, `float` or `bool` (or one of them `| None`), and returns a reward by TRL's
contract. Beside the contract, a reward may have these attributes:

- `name`: under which it is logged;
- `required_columns`: names of columns that it reads, so that a dataset without them is refused at the start;
- `cache_key`: see `hf_rlhf.rewards.cache`;
- `cached_columns`: names of the columns that are part of its key, by default `required_columns`, else all;
- `main_thread`: True where it can be called in the main thread only, and so not while the policy samples;
- `to(device)`: moves its model to the device of the run.

Every named reward also takes `weight`, `clip` and `normalize`; see `hf_rlhf.rewards.parts`.
"""

import inspect
import os
import re
import types
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hf_rlhf.errors import InputError, did_you_mean
from hf_rlhf.rewards.functions import is_function_name, load_function
from hf_rlhf.rewards.parts import PART_ARGUMENTS, PartShaping

REWARDS: dict[str, str] = {
    "classifier": "hf_rlhf.rewards.classifier:Classifier",
    "code_tests": "hf_rlhf.rewards.code_tests:CodeTests",
    "exact_match": "hf_rlhf.rewards.verifiers:ExactMatch",
    "http": "hf_rlhf.rewards.http:HTTPReward",
    "json_schema": "hf_rlhf.rewards.verifiers:JSONSchema",
    "judge": "hf_rlhf.rewards.judged:judge_reward",
    "math": "hf_rlhf.rewards.verifiers:Math",
    "moderation": "hf_rlhf.rewards.moderation:Moderation",
    "regex": "hf_rlhf.rewards.verifiers:Regex",
    "similarity": "hf_rlhf.rewards.similarity:Similarity",
}
"""The named rewards: `module:factory` by name."""

_NAMED = re.compile(r"\s*(?P<name>[A-Za-z]\w*)\s*(?::\s*(?P<arguments>[A-Za-z_]\w*\s*=.*)?)?", re.DOTALL)
_ARGUMENT = re.compile(r"\s*([A-Za-z_]\w*)\s*=\s*")
_QUOTED = re.compile(r"""("(?:[^"]|"")*"|'(?:[^']|'')*')\s*(?:,|$)""")
_NEXT_ARGUMENT = re.compile(r",(?=\s*[A-Za-z_]\w*\s*=)")
_NEXT_REWARD = re.compile(r",\s*[A-Za-z_]\w*:[A-Za-z_]\w*=")


def is_named_reward(text: str) -> bool:
    """Return whether `text` means a named reward: `NAME:ARGUMENT=...`, or the name of one alone.

    A folder of that name is a model, and `module:function` is a function.
    """
    match = _NAMED.fullmatch(text)
    if match is None or os.path.isdir(text):  # Path.is_dir raises for a pattern that is longer than a file's name
        return False
    return match["arguments"] is not None or match["name"] in REWARDS


def shown_reward(text: str) -> str | None:
    """Return the name of a named reward without its arguments, which may hold paths; None for another reward."""
    return parse_named(text)[0] if is_named_reward(text) else None


def names_function(text: str) -> bool:
    """Return whether `text` means a reward that is no model's folder or Hub name: a named reward or a function."""
    return is_named_reward(text) or is_function_name(text)


def load_named_function(text: str, *, flag: str = "reward_funcs") -> Callable[..., Any]:
    """Return the function that `text` means: a named reward, `module:function` or `file.py:function`.

    Raises `InputError` that names the `flag` which gave `text`.
    """
    try:
        return make_reward(text) if is_named_reward(text) else load_function(text)
    except InputError as error:
        raise InputError(str(error).replace("reward_funcs=", f"{flag}=", 1)) from error


def loaded_rewards(reward_model_path: str | None, reward_funcs: Sequence[str] | None) -> list[Any]:
    """Return the rewards that two flags name: functions and named rewards as functions, models by their names.

    Raises `InputError` as `load_named_function`.
    """
    named = [("reward_model_path", reward_model_path), *(("reward_funcs", name) for name in reward_funcs or ())]
    return [load_named_function(name, flag=flag) if names_function(name) else name for flag, name in named if name]


def make_reward(text: str) -> Callable[..., Any]:
    """Make the named reward of `text`, with its shaping as the attribute `shaping`.

    Raises `InputError` for a name that no reward has, for an argument that it does not take, lacks or cannot read, and
    for what the reward itself refuses.
    """
    factory, arguments = require_named(text)
    shaping = {key: arguments.pop(key) for key in PART_ARGUMENTS if key in arguments}
    try:
        reward = factory(**arguments)
        reward.shaping = PartShaping(**shaping)
    except InputError as error:
        message = str(error)
        raise error if message.startswith("reward_funcs=") else _invalid(text, message.rstrip("."), None) from error
    return reward


def require_named(text: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the factory of a named reward and its arguments, without making it, which may load a model.

    Raises `InputError` for a name or an argument that is wrong, and for one that is missing.
    """
    return read_named(text, REWARDS, more_kinds=PART_ARGUMENTS)


def read_named(
    text: str,
    factories: Mapping[str, str],
    *,
    flag: str = "reward_funcs",
    kind: str = "reward",
    more_kinds: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the factory that `text` names, and its arguments as the types of the factory's annotations.

    Args:
        text: see `parse_named`.
        factories: `module:factory` by name.
        flag, kind: that the text was given for, and what it names, for errors.
        more_kinds: the types of further arguments by name.

    Raises `InputError` for a name or an argument that is wrong, and for one that is missing.
    """
    name, given = parse_named(text, flag)
    if name not in factories:
        known = f"The named {kind}s are {', '.join(sorted(factories))}; a function is file.py:name or module:name"
        raise _invalid(text, f"there is no {kind} {name!r}", f"{did_you_mean(name, factories)}{known}", flag)
    module, _, attribute = factories[name].partition(":")
    factory = getattr(import_module(module), attribute)
    kinds = {**_kinds(factory), **more_kinds}
    arguments = {key: _converted(text, key, value, kinds, flag) for key, value in given.items()}
    required = [key for key, parameter in inspect.signature(factory).parameters.items() if parameter.default is parameter.empty]  # fmt: skip
    if missing := [key for key in required if key not in arguments]:
        raise _invalid(text, f"{name} needs {', '.join(missing)}", f"Write {name}:{missing[0]}=VALUE", flag)
    return factory, arguments


def parse_named(text: str, flag: str = "reward_funcs") -> tuple[str, dict[str, str]]:
    """Return the name and the arguments of `NAME:ARGUMENT=VALUE,...`, all as text. `flag` is for errors."""
    match = _NAMED.fullmatch(text)
    if match is None:
        raise _invalid(text, "it does not read as NAME:ARGUMENT=VALUE,ARGUMENT=VALUE", "Write it so", flag)
    arguments: dict[str, str] = {}
    rest = match["arguments"] or ""
    while rest:
        key_match = _ARGUMENT.match(rest)
        if key_match is None:
            raise _invalid(text, f"{rest!r} is no ARGUMENT=VALUE", "Put a value that holds commas into quotes", flag)
        value, rest = _split_value(rest[key_match.end() :], text, flag)
        if key_match[1] in arguments:
            raise _invalid(text, f"it has {key_match[1]} twice", "Keep one", flag)
        arguments[key_match[1]] = value
    return match["name"], arguments


def named_text(mapping: Mapping[str, Any]) -> str:
    """Return the text form of `{name: similarity, column: reference}`, as a YAML file may write a named reward."""
    if not isinstance(mapping.get("name"), str):
        raise InputError(f"reward_funcs={dict(mapping)} is invalid: it has no name. Add one, such as name: similarity.")
    arguments = {str(key): value for key, value in mapping.items() if key != "name" and value is not None}
    for key, value in arguments.items():
        if not isinstance(value, (str, int, float)):
            raise InputError(
                f"reward_funcs={dict(mapping)} is invalid: {key} holds a {type(value).__name__}. Write text, a number,"
                " true or false; JSON goes into quotes."
            )
    quoted = (f"{key}={_quote(value)}" for key, value in arguments.items())
    return f"{mapping['name']}:{','.join(quoted)}"


def require_no_typing_slip(text: str) -> None:
    """Raise `InputError` for a text that is read as a model's name and that the user cannot have meant as one.

    That is the name of a reward with a letter wrong, and an argument that a list in YAML cut off at a comma.
    """
    if os.path.exists(text) or "/" in text or "\\" in text or ":" in text:
        return
    if _ARGUMENT.match(text):
        raise _invalid(
            text, "it is an argument without a reward", "In a YAML list, put the whole reward into single quotes"
        )
    if hint := did_you_mean(text, REWARDS):
        raise _invalid(text, "there is no folder and no reward of that name", f"{hint}{_known()}")


def _split_value(text: str, whole: str, flag: str) -> tuple[str, str]:
    """Return the value that `text` begins with, and what follows its comma."""
    if text[:1] in ("'", '"'):
        match = _QUOTED.match(text)
        if match is None:
            raise _invalid(whole, f"the quote {text[0]} does not close", "Write a quote inside of quotes twice", flag)
        quote = text[0]
        return match[1][1:-1].replace(quote * 2, quote), text[match.end() :]
    end = _NEXT_ARGUMENT.search(text)
    value, rest = (text, "") if end is None else (text[: end.start()], text[end.end() :])
    if _NEXT_REWARD.search(value) or any(each.strip() in REWARDS for each in value.split(",")[1:]):
        raise _invalid(whole, "it holds two rewards", "Separate them by a space, or put the value into quotes", flag)
    return value.strip(), rest


def _quote(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return '"' + text.replace('"', '""') + '"'


def _kinds(factory: Callable[..., Any]) -> dict[str, Any]:
    """Return the type of each argument of a factory."""
    hints = get_type_hints(factory.__init__ if isinstance(factory, type) else factory)
    return {key: hints.get(key, str) for key in inspect.signature(factory).parameters}


def _converted(text: str, key: str, value: str, kinds: Mapping[str, Any], flag: str) -> Any:
    """Return an argument's value as its type. Raises `InputError` for one that the factory does not take."""
    if key not in kinds:
        known = f"Its arguments are {', '.join(kinds)}"
        raise _invalid(text, f"it takes no {key!r}", f"{did_you_mean(key, kinds)}{known}", flag)
    kind: Any = kinds[key]
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(each for each in get_args(kind) if each is not type(None))
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise _invalid(text, f"{key}={value} is neither true nor false", f"Write {key}=true or {key}=false", flag)
        return value.lower() == "true"
    try:
        return kind(value)
    except ValueError as error:
        number = "a whole number" if kind is int else "a number"
        raise _invalid(text, f"{key}={value} is not {number}", f"Write {key}=1, say", flag) from error


def _known() -> str:
    return f"The named rewards are {', '.join(sorted(REWARDS))}; a function is file.py:name or module:name"


def _invalid(text: str, reason: str, advice: str | None, flag: str = "reward_funcs") -> InputError:
    return InputError(f"{flag}={text} is invalid: {reason}." + (f" {advice}." if advice else ""))
