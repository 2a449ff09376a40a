"""Reward functions by name: `file.py:name` and `module:name`, loaded as Python loads modules.

A file becomes the module `hf_rlhf.rewards.functions.<its folder, quoted>.<its stem>`. That name is the file's alone, so it
hides no installed module and no other file of the same stem. It can be imported in any process, so functions and classes
of the file can be pickled, for processes that are spawned too.
"""

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote, unquote

from hf_rlhf.errors import InputError, require_path_name

__path__: list[str] = []  # so that the import system takes this module for the parent of those that `_Finder` finds
_ADVICE = "Name a function as file.py:name or module:name"


def is_function_name(name: str) -> bool:
    """Return whether `name` means a function, and not a model's folder or Hub name."""
    return (":" in name or name.endswith(".py")) and not Path(name).is_dir()


def load_function(name: str) -> Callable[..., Any]:
    """Import the function that `file.py:name` or `module:name` names.

    The folder of the file, or the working directory for a module, is the first on the path while the import runs, as it is
    for `python file.py` and `python -m module`; later it is the last, where it hides nothing.

    Raises `InputError` when there is no such file, module or function, when it cannot be called, and when the file itself
    raises: with the file's own error and its line.
    """
    where, _, attribute = name.rpartition(":")
    if name.endswith(".py"):
        where, attribute = name, ""
    if where.endswith(".py"):
        require_path_name(name, "reward_funcs")
        file = Path(where).expanduser().resolve()
        _require_file(file, name)
        module = _imported(_module_name(file), file.parent, name)
    elif all(part.isidentifier() for part in where.split(".")):
        module = _imported(where, Path.cwd(), name)
    else:
        raise _no_module(where, name)
    return _function(module, attribute, name)


class _Finder:
    """Finds, below this module, a package for every folder, and in it a module for every `.py` file of the folder."""

    @staticmethod
    def find_spec(fullname: str, path=None, target=None) -> ModuleSpec | None:
        parent, _, name = fullname.rpartition(".")
        if parent == __name__ and os.path.isabs(unquote(name)):
            package = ModuleSpec(fullname, None, is_package=True)
            package.submodule_search_locations = [unquote(name)]
            return package
        package_parent, _, folder = parent.rpartition(".")
        file = Path(unquote(folder), unquote(name) + ".py")
        if package_parent == __name__ and file.is_file():
            return spec_from_file_location(fullname, file)
        return None


sys.meta_path.insert(0, _Finder)  # pyright: ignore[reportArgumentType]


def _module_name(file: Path) -> str:
    parts = (quote(part, safe="").replace(".", "%2E") for part in (str(file.parent), file.stem))
    return ".".join([__name__, *parts])


def _imported(module: str, folder: Path, name: str) -> ModuleType:
    try:
        with _first_on_path(str(folder)):
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise _no_module(module, name) from error
        raise _own_error(name, error) from error
    except (Exception, SystemExit) as error:
        raise _own_error(name, error) from error


@contextmanager
def _first_on_path(folder: str) -> Iterator[None]:
    hidden = _siblings_elsewhere(Path(folder))
    for name in hidden:
        del sys.modules[name]
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.modules.update(hidden)
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)
        importlib.invalidate_caches()


def _siblings_elsewhere(folder: Path) -> dict[str, ModuleType]:
    """The modules that the reward files of other folders imported from beside them, and of which `folder` has its own."""
    files = {name: Path(file) for name, each in sys.modules.items() if (file := getattr(each, "__file__", None))}
    others = {file.parent for name, file in files.items() if name.startswith(f"{__name__}.")} - {folder}
    tops = {
        name
        for name, file in files.items()
        if (file.parent in others or (file.name == "__init__.py" and file.parent.parent in others))
        and ((folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file())
    }
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in tops}


def _function(module: ModuleType, attribute: str, name: str) -> Callable[..., Any]:
    defined = [
        key
        for key, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__ and not key.startswith("_")
    ]
    has = f"{module.__file__} has {', '.join(defined) or 'no functions'}"
    if not attribute:
        raise _invalid(name, "it names a file, and no function in it", has)
    if not hasattr(module, attribute):
        raise _invalid(name, f"there is no {attribute!r} in it", f"{_did_you_mean(attribute, defined)}{has}")
    found = getattr(module, attribute)
    if isinstance(found, type):
        raise _invalid(name, f"{attribute} is a class", "Make an object of it in the file, and name the object")
    if not callable(found):
        raise _invalid(name, f"{attribute} is {type(found).__name__}, which cannot be called", has)
    return found


def _require_file(file: Path, name: str) -> None:
    if not file.is_file():
        there = [each.name for each in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise _invalid(name, f"there is no file {file}", _did_you_mean(file.name, there) + _ADVICE)


def _no_module(module: str, name: str) -> InputError:
    file = f"{module}.py"
    meant = f"Did you mean {file}:{name.rpartition(':')[2]}? " if Path(file).is_file() else ""
    return _invalid(name, f"there is no module {module!r}", meant + _ADVICE)


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]!r}? " if close else ""


def _own_error(name: str, error: BaseException) -> InputError:
    """The error of the user's file: as Python shows it, without the frames of the import."""
    shown = traceback.TracebackException.from_exception(error)
    own = [frame for frame in shown.stack if frame.filename != __file__ and "importlib" not in frame.filename]
    lines = [*traceback.format_list(own), *shown.format_exception_only()]
    return InputError(f"reward_funcs={name} is invalid: loading it raised an error\n{''.join(lines).rstrip()}")


def _invalid(name: str, reason: str, advice: str) -> InputError:
    return InputError(f"reward_funcs={name} is invalid: {reason}. {advice}.")
