"""The errors that users meet."""

import difflib
import json
import linecache
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from types import FrameType
from typing import Any

_LIBRARIES = ("transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "deepspeed", "torch.optim", "torch.utils.data")  # fmt: skip
_RAISED_ON_PURPOSE = (ValueError, TypeError, KeyError, ImportError, RuntimeError, NotImplementedError)


class InputError(ValueError):
    """An error in what the user gave. The message says what is wrong, where, and how to fix it.

    The command line prints the message alone and exits with status 2. It is a `ValueError`, so library users can
    catch it as one.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence with the closest name of `known`, for an error; nothing where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {close[0]!r}? " if close else ""


class PushError(RuntimeError):
    """A failed push to the Hub of a trained and saved model. The message says why, and how to push it again.

    The command line prints the message alone and exits with status 3.
    """


class RunFailed(RuntimeError):
    """A run that cannot continue for a reason outside of what the user gave, such as a full disk or a failed rank.

    The command line prints the message alone and exits with status 1.
    """


class RunStopped(SystemExit):
    """The end of a run by a signal, after a checkpoint was saved. It is a `SystemExit` with the run's exit status.

    Args:
        signal_number: of the signal; the exit status is 128 more, as in a shell.
        message: what was saved, and how to continue.
    """

    def __init__(self, signal_number: int, message: str):
        super().__init__(128 + signal_number)
        self.message = message

    def __str__(self) -> str:
        return self.message


def require_path_name(name: str, flag: str) -> None:
    """Raise `InputError` when this system's encoding cannot write `name`, the path that `flag` gives.

    A YAML file is UTF-8 everywhere, so under `LC_ALL=C` it can name files that Python cannot reach.
    """
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        raise InputError(
            f"{flag}={name!a} is invalid: this locale ({error.encoding}) has no path of that name. Set PYTHONUTF8=1 in"
            " the environment, or give a name in ASCII."
        ) from error


@contextmanager
def refusals_of_libraries(
    *settings: Any, blamed: Sequence[str] = (), until: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Raise `InputError` where a library refuses what the settings ask for, in its words and with the flags it names.

    A refusal is told from a bug by the place that raised it. It is a refusal when the last frame (outside of the
    standard library) is a `raise` statement of such a library, or an import, a conversion or a call with arguments of
    the user's that failed there. What is raised in this package or in code of the user's stays as it is, and so does
    everything once `until` is true: training has begun, and what fails then is no flag.

    Args:
        settings: dataclasses of flags.
        blamed: the flags to name when the library names none.
        until: whether training has begun.
    """
    try:
        yield
    except InputError:
        raise
    except _RAISED_ON_PURPOSE as error:
        library = _refusing_library(error)
        if library is None or until():
            raise
        reason = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
        raise InputError(f"{_named_flags(reason, settings, blamed)} invalid: {reason} (says {library})") from error


def _refusing_library(error: BaseException) -> str | None:
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if not _is_standard(frame)]
    if not frames:
        return None
    frame, line = frames[-1]
    library = next((name for name in _LIBRARIES if f"{_module(frame)}.".startswith(f"{name}.")), None)
    if library is None or isinstance(error, (json.JSONDecodeError, UnicodeError)):  # a damaged file
        return None
    on_purpose = linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("raise")
    by_itself = isinstance(error, (ImportError, ValueError)) or _calls_library(error, frame)
    return library if on_purpose or by_itself else None


def _calls_library(error: BaseException, frame: FrameType) -> bool:
    """Return whether a library's callable (an optimizer, say), and not a user's callback, refused its arguments."""
    if not isinstance(error, TypeError) or "argument" not in str(error):
        return False
    names = str(error).partition("(")[0].split(".")  # AdamW.__init__, transformers.optimization.get_cosine_schedule
    called = (*frame.f_locals.values(), *map(frame.f_globals.get, names))
    modules = [str(getattr(each, "__module__", "")) for each in called if getattr(each, "__name__", "") in names]
    return any(module.partition(".")[0] in ("torch", *_LIBRARIES) for module in modules)


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__"))


def _is_standard(frame: FrameType) -> bool:
    name = _module(frame).partition(".")[0]
    return name in sys.stdlib_module_names and name != "__main__"


def _named_flags(reason: str, settings: tuple[Any, ...], blamed: Sequence[str]) -> str:
    """Return the flags that a message is about, with their values.

    Among the flags that differ from their defaults, these are the ones that the message names, or else the ones whose
    value it repeats, or else those of `blamed`.
    """
    changed = {
        field.name: getattr(value, "value", value)
        for each in settings
        for field in fields(each)
        if (value := getattr(each, field.name)) != field.default
    }
    words = {word.lower() for word in re.findall(r"\w+", reason)}
    names = [name for name in changed if name in words]
    names = names or [name for name, value in changed.items() if isinstance(value, str) and value.lower() in words]
    names = names or [name for name in blamed if name in changed]
    named = [f"{name}={changed[name]}" for name in names]
    return f"{', '.join(named)} {'is' if len(named) == 1 else 'are'}" if named else "the settings are"
