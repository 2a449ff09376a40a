"""The errors that users meet."""

import linecache
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

_LIBRARIES = ("transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "deepspeed", "torch.optim", "torch.utils.data")  # fmt: skip
_RAISED_ON_PURPOSE = (ValueError, TypeError, KeyError, ImportError, RuntimeError, NotImplementedError)


class InputError(ValueError):
    """Something the user gave is wrong; the message says what, where and how to mend it.

    The command line prints the message alone and exits with status 2. It is a `ValueError`, so library users can
    catch it as one.
    """


class PushError(RuntimeError):
    """A trained and saved model could not be pushed to the Hub; the message says why and how to push it again.

    The command line prints the message alone and exits with status 3.
    """


class RunFailed(RuntimeError):
    """A run cannot go on for a reason outside of what the user gave: a full disk, say, or another rank's failure.

    The command line prints the message alone and exits with status 1.
    """


class RunStopped(SystemExit):
    """A signal ended the run after a checkpoint was saved. As a `SystemExit` it ends any script with its status.

    Args:
        signal_number: of the signal; the exit status is 128 more, as in a shell.
        message: what was saved, and how to go on.
    """

    def __init__(self, signal_number: int, message: str):
        super().__init__(128 + signal_number)
        self.message = message

    def __str__(self) -> str:
        return self.message


@contextmanager
def refusals_of_libraries(
    *settings: Any, blamed: Sequence[str] = (), until: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Raise `InputError` where a library refuses what the settings ask for, in its words and with the flags it names.

    A refusal is told from a bug by the place that raised it. It is a refusal when the last frame is a `raise` statement of
    such a library, or an import, a conversion or a call with arguments of the user's that failed there. What is
    raised in this package or in code of the user's stays as it is, and so does everything once `until` is true: training
    has begun, and what fails then is no flag.

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
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None:
        return None
    module = str(place.tb_frame.f_globals.get("__name__"))
    library = next((name for name in _LIBRARIES if f"{module}.".startswith(f"{name}.")), None)
    on_purpose = linecache.getline(place.tb_frame.f_code.co_filename, place.tb_lineno).lstrip().startswith("raise")
    by_itself = isinstance(error, (ImportError, ValueError)) or "argument" in str(error)  # of a call with the user's
    return library if on_purpose or by_itself else None


def _named_flags(reason: str, settings: tuple[Any, ...], blamed: Sequence[str]) -> str:
    """The flags that a message names and that differ from their defaults, or else those of `blamed`, with their values."""
    changed = {
        field.name: getattr(value, "value", value)
        for each in settings
        for field in fields(each)
        if (value := getattr(each, field.name)) != field.default
    }
    words = re.findall(r"\w+", reason)
    names = [name for name in changed if name in words] or [name for name in blamed if name in changed]
    named = [f"{name}={changed[name]}" for name in names]
    return f"{', '.join(named)} {'is' if len(named) == 1 else 'are'}" if named else "the settings are"
