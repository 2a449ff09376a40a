"""Config files: YAML of flat keys within limits, so that a hostile or damaged file gives one clear error."""

import types
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from hf_rlhf.errors import InputError

MAX_BYTES = 256 * 2**10
MAX_DEPTH = 20


@dataclass(frozen=True)
class ConfigFile:
    """The keys and values of a YAML file, and the line of each key."""

    file: Path
    values: dict[str, Any]
    lines: dict[str, int]

    def place(self, key: object) -> str:
        """Return the file with the line of a key."""
        return f"{self.file}:{self.lines[str(key)]}" if str(key) in self.lines else str(self.file)


def read_config_file(file: Path) -> ConfigFile:
    """Read a YAML file once, as UTF-8 whatever the locale.

    Raises `InputError` with the line for: what is not UTF-8 or not YAML, more than 20 levels, anchors and aliases (a
    few lines of them can stand for gigabytes), tags, a key that is there twice, dates that are none and whole numbers
    of more than 64 bits; and with the file for more than 256 kB and anything but a mapping.
    """
    import yaml

    text = _read(file)
    try:
        _check_events(file, yaml.parse(text, Loader=yaml.SafeLoader))
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_nodes(file, tree)
        content = yaml.safe_load(text)
    except InputError:
        raise
    except yaml.MarkedYAMLError as error:
        raise InputError(f"{_place(file, error.problem_mark)} is not valid YAML: {_in_words(error)}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(f"{file}:{line} is not valid YAML: a control character ({error.reason})") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise InputError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} must hold `key: value` lines, not a {type(content).__name__}")
    lines = {str(key.value): key.start_mark.line + 1 for key, _ in tree.value}
    return ConfigFile(file, content, lines)


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the config file {file}: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > MAX_BYTES:
        raise InputError(
            f"{file} has more than {MAX_BYTES} bytes, and no config needs as many. Check that it is the right file"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{file}:{line} is not valid YAML: it is not UTF-8 ({error.reason}). Save it as UTF-8"
        ) from error


def _check_events(file: Path, events: Iterator[Any]) -> None:
    """Refuse anchors, tags and deep nesting before a tree is made of the events.

    Making the tree uses one level of the stack for each level of the file.
    """
    from yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

    depth = 0
    for event in events:
        place = _place(file, event.start_mark)
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None):
            raise InputError(
                f"{place}: anchors (&) and aliases (*) are not allowed here. Write the value out, or in quotes"
            )
        if getattr(event, "tag", None):
            raise InputError(f"{place}: tags such as {event.tag!r} are not allowed here. Write a plain value")
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise InputError(f"{place}: nested more than {MAX_DEPTH} levels deep. A config has flat `key: value` lines")


def _check_nodes(file: Path, node: Any) -> None:
    """Raise `InputError` for a key that is there twice, at any level, and for a value that stands for none."""
    from yaml.nodes import MappingNode, ScalarNode, SequenceNode

    if isinstance(node, ScalarNode):
        _check_scalar(file, node)
    elif isinstance(node, SequenceNode):
        for value in node.value:
            _check_nodes(file, value)
    elif isinstance(node, MappingNode):
        known: set[str] = set()
        for key, value in node.value:
            if str(key.value) in known:
                raise InputError(f'{_place(file, key.start_mark)}: the key "{key.value}" is there twice. Keep one')
            known.add(str(key.value))
            _check_nodes(file, key)
            _check_nodes(file, value)


def _check_scalar(file: Path, node: Any) -> None:
    from yaml.constructor import SafeConstructor

    place = _place(file, node.start_mark)
    try:
        value = SafeConstructor().construct_object(node)
    except (ValueError, ArithmeticError) as error:  # a date such as 2026-99-99; 1:1:1.5 to the base of 60
        raise InputError(f"{place} is not valid YAML: {error}. If it is text, put it in quotes") from error
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InputError(f"{place}: a whole number of more than 64 bits, which no flag takes")


def _place(file: Path, mark: Any) -> str:
    return str(file) if mark is None else f"{file}:{mark.line + 1}"


def _in_words(error: Any) -> str:
    problem = str(error.problem)
    return "a tab; indent with spaces" if r"'\t'" in problem else problem


# --- values ------------------------------------------------------------------------------------------------------


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value of a YAML file fits a flag of this type. Text is read as on the command line."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return not _is_off_unquoted(value, inner) and any(fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if origin is list:
        return isinstance(value, list) and all(fits(each, inner[0]) for each in value)
    if kind is Any or kind is type(None):
        return kind is Any or value is None
    if isinstance(value, str) and kind in (bool, int, float):
        return True  # argparse reads it: YAML takes 1e-5 for text
    if isinstance(kind, type) and issubclass(kind, Enum):
        return isinstance(value, str)
    if is_dataclass(kind):
        return isinstance(value, (str, dict))  # such as a dataset of a mixture; the class checks the keys
    taken = {float: (int, float), str: (str, int, float, bool)}.get(kind, origin or kind)
    return isinstance(value, taken) and (not isinstance(value, bool) or kind in (bool, str))


def _is_off_unquoted(value: Any, kinds: tuple[Any, ...]) -> bool:
    """Return whether a flag of choices got false from an unquoted `no` or `off`, as in `save_strategy: no`."""
    return isinstance(value, bool) and any(isinstance(kind, type) and issubclass(kind, Enum) for kind in kinds)


def describe(kind: Any) -> str:
    """Describe the type of a flag in words."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(repr(each.value) for each in kind)}, in quotes"
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(describe, inner)))
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is list and is_dataclass(inner[0]):
        return "a list of mappings"
    return words.get(kind, f"a {getattr(origin or kind, '__name__', kind)}")
