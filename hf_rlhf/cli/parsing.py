"""Flat keys, as in TRL's scripts: from a YAML file, from the command line, or both (the command line wins)."""

import itertools
import math
import os
import re
from argparse import Action
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from trl import TrlParser

from hf_rlhf.cli.config_files import ConfigFile, describe, fits, read_config_file
from hf_rlhf.cli.help import print_help, wants_help
from hf_rlhf.compat.names import new_name, unknown_name
from hf_rlhf.credentials import refuse_secrets
from hf_rlhf.errors import InputError
from hf_rlhf.rewards.named import named_text

_TEXTS = ("stop_strings",)
"""Lists of texts, which may hold commas; the items of all other lists are names and numbers."""


def parse_arguments(dataclasses: Sequence[Any], argv: Sequence[str], prog: str) -> tuple[Any, ...]:
    """Read `--config file.yaml` and `--key value` into instances of `dataclasses`.

    A list may be written with spaces, with commas, or in YAML as a list.

    Raises `InputError` for an unknown key (with a suggestion), a value of the wrong type, an access token or a broken
    YAML file.
    """
    _refuse_secret_options(argv, prog)
    _refuse_halves_of_characters(argv)
    kinds = {name: kind for each in dataclasses for name, kind in get_type_hints(each).items()}
    parser = _Parser(dataclasses, kinds, prog)
    if wants_help(argv):
        print_help(parser, dataclasses, argv)
        raise SystemExit(0)
    known = [action.dest for action in parser._actions]
    argv, file = _without_config(argv)
    argv = _with_new_names(argv, known)
    config = None if file is None else read_config_file(Path(file))
    try:
        if config is not None:
            parser.set_defaults_with_config(**_checked_values(config, parser))
            os.environ.update({name: str(value) for name, value in config.values.get("env", {}).items()})
        *parsed, unknown = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
    except InputError as error:
        raise InputError(_with_place(str(error), argv, config)) from error
    except Exception as error:  # the settings of transformers raise what they like, an OverflowError too
        raise InputError(str(error) or type(error).__name__) from error
    if unknown:
        raise InputError(unknown_name(unknown[0].split("=")[0].lstrip("-"), known, "the command line"))
    for name, value in ((name, value) for each in parsed for name, value in vars(each).items()):
        if isinstance(value, float) and math.isnan(value):
            raise InputError(f"{name}=nan is invalid: it is not a number")
    return tuple(parsed)


class _Parser(TrlParser):
    """A parser in which every flag that can be a list takes several values.

    Raises `InputError` where argparse would print a page and exit.
    """

    def __init__(self, dataclasses: Sequence[Any], kinds: Mapping[str, Any], prog: str):
        super().__init__(list(dataclasses), prog=prog, allow_abbrev=False)
        self.kinds = kinds
        self.lists = {action.dest: action for action in self._actions if _can_be_list(kinds.get(action.dest))}
        for action in self.lists.values():
            action.nargs = "+"

    def error(self, message: str):
        raise InputError(message)

    def parse_known_args(self, args=None, namespace=None):
        """Like `ArgumentParser.parse_known_args`, but takes commas between the items of a list."""
        namespace, rest = super().parse_known_args(list(self._with_items_apart(args or ())), namespace)
        for name in self.lists:
            value = getattr(namespace, name)
            if isinstance(value, list) and len(value) == 1 and str in get_args(self.kinds[name]):
                setattr(namespace, name, value[0])  # a word that stands for several, such as all-linear
        return namespace, rest

    def _with_items_apart(self, argv: Sequence[str]) -> Iterator[str]:
        name = ""
        for arg in argv:
            if arg.startswith("--"):
                option, given, value = arg.partition("=")
                name = option.removeprefix("--").replace("-", "_")
                yield from [option, *_items(name, value)] if given and name in self.lists else [arg]
            else:
                yield from _items(name, arg) if name in self.lists else [arg]


def _can_be_list(kind: Any) -> bool:
    return list in (get_origin(kind), *map(get_origin, get_args(kind)))


def _items(name: str, text: str) -> list[str]:
    """Return the items of a list that is written with commas.

    Text that is more than names (a regular expression) stays whole, and so does a path with commas that exists.
    """
    if os.path.exists(text.rpartition(":")[0] or text):  # Path.exists raises for what is too long for a name
        return [text]
    items = [item.strip() for item in text.split(",") if item.strip()]
    plain = all(re.fullmatch(r"[\w.:/\\~+-]+", item) for item in items)
    return items if items and plain and name not in _TEXTS else [text]


def _with_new_names(argv: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return the command line by the names that flags have now. Raises `InputError` for a flag under both names."""
    renamed = []
    given = [arg.partition("=")[0] for arg in argv if arg.startswith("--")]
    names = {option: option.removeprefix("--").replace("-", "_") for option in given}
    for arg in argv:
        option, equals, value = arg.partition("=")
        name = names.get(option, "")
        new = new_name(name, known, "the command line")
        if new != name and new in names.values():
            raise InputError(f'the command line has both "{new}" and its old name "{name}". Give "{new}" alone')
        renamed.append(arg if new == name else f"--{new}{equals}{value}")
    return renamed


def _without_config(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """Split `--config file` off a command line; return the other arguments and the file."""
    argv = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    if "--config" not in argv:
        return argv, None
    position = argv.index("--config")
    if position + 1 == len(argv):
        raise InputError("--config needs a file")
    return argv[:position] + argv[position + 2 :], argv[position + 1]


def _checked_values(config: ConfigFile, parser: _Parser) -> dict[str, Any]:
    """Return the flags of a config file. Raises `InputError` for unknown keys, wrong types and access tokens."""
    refuse_secrets(config.values, str(config.file))
    values = {}
    for key, value in config.values.items():
        if key == "env":
            _check_environment(value, config.file)
            continue
        place = config.place(key)
        new_key = new_name(str(key), list(parser.kinds), place)
        if new_key not in parser.kinds:
            raise InputError(unknown_name(str(key), list(parser.kinds), place))
        if new_key != key and new_key in config.values:
            raise InputError(f'{place} has "{key}", the old name of "{new_key}", which is there too; give one')
        if new_key in parser.lists and value is not None:
            value = value if isinstance(value, list) else _items(new_key, value) if isinstance(value, str) else [value]
        if new_key == "reward_funcs" and value is not None:
            value = [named_text(each) if isinstance(each, Mapping) else each for each in value]
        if not fits(value, parser.kinds[new_key]):
            kind = describe(parser.kinds[new_key])
            raise InputError(f"{key}: {value!r} in {place} does not fit: it takes {kind}")
        if new_key in parser.lists and value:
            value = _converted(parser.lists[new_key], value, config)
        values[new_key] = value
    return values


def _converted(action: Action, values: list[Any], config: ConfigFile) -> list[Any]:
    """Convert the items of a list in a file as those of the command line are converted."""
    convert: Any = action.type
    try:
        return [convert(value) if isinstance(value, str) else value for value in values]
    except ValueError as error:
        raise InputError(f"{action.dest} in {config.place(action.dest)}: {error}") from error


def _with_place(message: str, argv: Sequence[str], config: ConfigFile | None) -> str:
    """Return argparse's message, with the line in the config file if the value came from there."""
    named = re.match(r"argument --(\w+)\S*: ", message)
    on_command_line = {arg.split("=")[0].lstrip("-").replace("-", "_") for arg in argv if arg.startswith("--")}
    if config is None or named is None or named[1] in on_command_line:
        return message
    return f"{named[1]} in {config.place(named[1])}: {message[named.end() :]}"


def _check_environment(variables: Any, file: Path) -> None:
    if not isinstance(variables, dict) or not all(isinstance(name, str) and name for name in variables):
        raise InputError(f"env in {file} must hold `NAME: value` lines")
    if bad := [name for name, value in variables.items() if "=" in name or "\0" in f"{name}{value}"]:
        raise InputError(f"env in {file}: {bad[0]!r} cannot be a variable of the environment")


def _refuse_halves_of_characters(argv: Sequence[str]) -> None:
    """Refuse text that the locale could not decode.

    Under a locale that differs from the terminal's, such an argument holds halves of characters. A file with such a
    name can be opened, so paths are accepted.
    """
    name = ""
    for arg in argv:
        name = arg.partition("=")[0].removeprefix("--").replace("-", "_") if arg.startswith("--") else name
        if name in _TEXTS and not arg.isascii() and any("\ud800" <= character <= "\udfff" for character in arg):
            raise InputError(
                f"{name}={arg!a} is invalid: this locale cannot read it from the command line. Set PYTHONUTF8=1 in the"
                " environment, or write it in a config file"
            )


def _refuse_secret_options(argv: Sequence[str], prog: str) -> None:
    """Refuse access tokens on the command line: they would show up in config.yaml and in every list of processes."""
    for option, following in itertools.zip_longest(argv, argv[1:]):
        name, given, value = option.partition("=")
        if name.startswith("--"):
            value = value if given else "" if (following or "").startswith("--") else following
            refuse_secrets({name.removeprefix("--"): value}, prog)
        else:
            refuse_secrets({"an option": option}, prog)
