"""Reward functions by name: `file.py:name` and `module:name`, loaded as Python loads modules.

A file becomes the module `hf_rlhf.rewards.functions.<its folder, quoted>.<its stem>`. That name is the file's alone, so
it hides no installed module and no other file of the same stem. It can be imported in any process, so functions and
classes of the file can be pickled, for processes that are spawned too. What the file imports from beside it becomes a
module of the same folder, so `import helper` in two folders gives two modules, at the top of a file and inside a
function.
"""

import builtins
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote, unquote

from hf_rlhf.errors import InputError, did_you_mean, require_path_name

__path__: list[str] = []  # so that the import system takes this module for the parent of those that `_Finder` finds
_folders: set[Path] = set()  # that hold reward files
_loading: list[str] = []  # the folder of the reward file that is being loaded
_ADVICE = "Name a function as file.py:name or module:name"


def is_function_name(name: str) -> bool:
    """Return whether `name` means a function, and not a model's folder or Hub name."""
    return (":" in name or name.endswith(".py")) and not name.startswith("embedded:") and not Path(name).is_dir()


def load_function(name: str, *, flag: str = "reward_funcs", classes: bool = False) -> Callable[..., Any]:
    """Import the function that `file.py:name` or `module:name` names, and a class where `classes` are taken too.

    The folder of the file, or the working directory for a module, is the first on the path while the import runs, as it
    is for `python file.py` and `python -m module`; later it is the last, where it hides nothing.

    Raises `InputError` for the flag when there is no such file, module or function, when it cannot be called, and when
    the file itself raises: with the file's own error and its line.
    """
    shown = f"{flag}={name}"
    where, _, attribute = name.rpartition(":")
    if name.endswith(".py"):
        where, attribute = name, ""
    if where.endswith(".py"):
        require_path_name(name, flag)
        file = Path(where).expanduser().resolve()
        _require_file(file, shown)
        module = _imported(_module_name(file), file.parent, shown)
    elif all(part.isidentifier() for part in where.split(".")):
        module = _imported(where, Path.cwd(), shown)
    else:
        raise _no_module(where, shown)
    return _find_function(module, attribute, shown, classes)


class _Finder:
    """A finder that shows, below this module, a package for every folder with the folder's modules and packages."""

    @staticmethod
    def find_spec(fullname: str, path=None, target=None) -> ModuleSpec | None:
        parent, _, name = fullname.rpartition(".")
        if not parent:
            _refuse_several(name)
        if not f"{parent}.".startswith(f"{__name__}."):
            return None
        if parent == __name__:
            if not os.path.isabs(unquote(name)):
                return None
            _folders.add(Path(unquote(name)))
            package = ModuleSpec(fullname, None, is_package=True)
            package.submodule_search_locations = [unquote(name)]
            return package
        folder = _folder(fullname)
        file = folder / f"{unquote(name)}.py"
        if parent == _package(folder) and file.is_file():
            spec = spec_from_file_location(fullname, file)
        else:
            spec = PathFinder.find_spec(fullname, path)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """A loader of files whose `import` looks into the reward file's folder first, as `python file.py` does."""

    def exec_module(self, module: ModuleType) -> None:
        imports = partial(_import, _folder(module.__name__))
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": imports}  # where the import statement looks
        super().exec_module(module)


def _import(folder: Path, name: str, globals=None, locals=None, fromlist=(), level: int = 0) -> ModuleType:
    """Like `builtins.__import__`, but a module from beside the reward file is a module of its folder."""
    top = name.partition(".")[0]
    if level or not _is_sibling(top, folder):
        return builtins.__import__(name, globals, locals, fromlist, level)
    module = builtins.__import__(f"{_package(folder)}.{name}", globals, locals, fromlist)
    return module if fromlist else sys.modules[f"{_package(folder)}.{top}"]


def _is_sibling(name: str, folder: Path) -> bool:
    """Return whether `import name` means a file or folder in `folder`, for a script that stands there."""
    if f"{_package(folder)}.{name}" in sys.modules:
        return True
    spec = None if name in sys.builtin_module_names else PathFinder.find_spec(name, [str(folder)])
    if spec is None:
        return False
    if spec.origin is not None:  # unless the program itself has imported it
        return getattr(sys.modules.get(name), "__file__", None) != spec.origin
    # A folder without __init__.py, which may hold data: an installed package of that name comes first
    elsewhere = getattr(sys.modules[name], "__spec__", None) if name in sys.modules else find_spec(name)
    return elsewhere is None or (elsewhere.origin is None and _places(elsewhere) <= {folder, *_folders})


def _refuse_several(name: str) -> None:
    """Refuse a module that several reward folders have, when `importlib` asks for it.

    Nothing tells which one it means.
    """
    if len(_folders) < 2 or _loading:
        return
    spec = PathFinder.find_spec(name)
    if spec and _places(spec) and _places(spec) <= _folders and len(owners := _owners(name)) > 1:
        raise ImportError(
            f"{name!r} is in the folders of several reward files: {', '.join(owners)}. Import it by an import"
            " statement, which takes the one beside its file, or give the files different names"
        )


sys.meta_path.insert(0, _Finder)  # pyright: ignore[reportArgumentType]


def _module_name(file: Path) -> str:
    return f"{_package(file.parent)}.{_quoted(file.stem)}"


def _package(folder: Path) -> str:
    return f"{__name__}.{_quoted(str(folder))}"


def _folder(module: str) -> Path:
    return Path(unquote(module.removeprefix(f"{__name__}.").partition(".")[0]))


def _quoted(name: str) -> str:
    return quote(name, safe="").replace(".", "%2E")


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
    _loading.append(folder)
    try:
        yield
    finally:
        _loading.pop()
        sys.modules.update(hidden)
        for name in _in_several_folders():
            del sys.modules[name]
        sys.path.remove(folder)
        if folder not in sys.path:
            reward_folders = (index for index, each in enumerate(sys.path) if Path(each) in _folders)
            is_reward_folder = Path(folder) in _folders
            sys.path.insert(len(sys.path) if is_reward_folder else next(reward_folders, len(sys.path)), folder)
        importlib.invalidate_caches()


def _siblings_elsewhere(folder: Path) -> dict[str, ModuleType]:
    """Return the modules that `importlib` gave to reward files of other folders and that `folder` has too."""
    tops = {name for name in _from_folders(_folders - {folder}) if PathFinder.find_spec(name, [str(folder)])}
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in tops}


def _in_several_folders() -> list[str]:
    """Return the modules that `importlib` gave to a reward file and that another reward file's folder has too."""
    tops = {name for name in _from_folders(_folders) if len(_owners(name)) > 1}
    return [name for name in sys.modules if name.partition(".")[0] in tops]


def _from_folders(folders: set[Path]) -> list[str]:
    """Return the top modules and packages that were imported from these folders under their own names."""
    specs = {name: getattr(module, "__spec__", None) for name, module in sys.modules.items() if "." not in name}
    return [name for name, spec in specs.items() if spec and _places(spec) and _places(spec) <= folders]


def _owners(name: str) -> list[str]:
    """Return the folders of reward files that have a module or package of this name."""
    return [str(folder) for folder in sorted(_folders) if PathFinder.find_spec(name, [str(folder)])]


def _places(spec: ModuleSpec) -> set[Path]:
    """Return the folder that holds a top module or package; several for a package without `__init__.py`."""
    if spec.origin is None:
        return {Path(each).parent for each in spec.submodule_search_locations or ()}
    file = Path(spec.origin)
    return {file.parent.parent if spec.submodule_search_locations is not None else file.parent}


def _find_function(module: ModuleType, attribute: str, name: str, classes: bool) -> Callable[..., Any]:
    defined = [
        key
        for key, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__ and not key.startswith("_")
    ]
    has = f"{module.__file__} has {', '.join(defined) or 'no functions'}"
    if not attribute:
        raise _invalid(name, "it names a file, and no function in it", has)
    if not hasattr(module, attribute):
        raise _invalid(name, f"there is no {attribute!r} in it", f"{did_you_mean(attribute, defined)}{has}")
    found = getattr(module, attribute)
    if isinstance(found, type) and not classes:
        raise _invalid(name, f"{attribute} is a class", "Make an object of it in the file, and name the object")
    if not callable(found):
        raise _invalid(name, f"{attribute} is {type(found).__name__}, which cannot be called", has)
    return found


def _require_file(file: Path, name: str) -> None:
    if not file.is_file():
        there = [each.name for each in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise _invalid(name, f"there is no file {file}", did_you_mean(file.name, there) + _ADVICE)


def _no_module(module: str, name: str) -> InputError:
    file = f"{module}.py"
    meant = f"Did you mean {file}:{name.rpartition(':')[2]}? " if Path(file).is_file() else ""
    return _invalid(name, f"there is no module {module!r}", meant + _ADVICE)


def _own_error(name: str, error: BaseException) -> InputError:
    """Return the error of the user's file as Python shows it, without the frames of the import."""
    shown = traceback.TracebackException.from_exception(error)
    own = [frame for frame in shown.stack if frame.filename != __file__ and "importlib" not in frame.filename]
    lines = [*traceback.format_list(own), *shown.format_exception_only()]
    return InputError(f"{name} is invalid: loading it raised an error\n{''.join(lines).rstrip()}")


def _invalid(name: str, reason: str, advice: str) -> InputError:
    return InputError(f"{name} is invalid: {reason}. {advice}.")
