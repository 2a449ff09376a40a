"""Rows from files, folders and the Hub."""

from __future__ import annotations

import difflib
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, overload

from hf_rlhf.data.folders import Shards, find_shards, names_files, read_split
from hf_rlhf.data.json_columns import keep_own_keys
from hf_rlhf.data.json_files import read_records, to_dataset
from hf_rlhf.data.rows import BadRows, LoadedRows, require_dataset
from hf_rlhf.data.tables import join_tables, read_table, table_to_dataset
from hf_rlhf.errors import InputError, require_path_name

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

T = TypeVar("T")

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".parquet")


@overload
def load_rows(
    name: str, *, split: str = "train", config_name: str | None = None, streaming: Literal[False] = False
) -> Dataset: ...
@overload
def load_rows(
    name: str, *, split: str = "train", config_name: str | None = None, streaming: bool
) -> Dataset | IterableDataset: ...
def load_rows(
    name: str, *, split: str = "train", config_name: str | None = None, streaming: bool = False
) -> Dataset | IterableDataset:
    """Load one split of a set of rows. What exists on disk wins over a Hub dataset of the same name.

    `name` is a file (.jsonl, .json, either also .gz, .csv, .parquet; a file is one split, so `split` is not used), a
    folder (made by `save_to_disk`, holding `<split>.jsonl` and the like, or anything that `datasets.load_dataset`
    reads, such as the shards of a cloned dataset repository), or the name of a Hub dataset. A folder never asks the
    network. Its file `<split>.jsonl` is the whole split, unless its README.md names other files.
    Keys that a JSON row lacks are None. `streaming=True` gives an `IterableDataset`.

    Raises InputError when nothing is found, a file is broken (with `file:line`) or there are no rows.
    """
    if streaming and not _looks_like_a_path(name) and not local_path(name).exists():
        return _load_from_hub(name, split, config_name, streaming=True)
    dataset = read_rows(name, split=split, config_name=config_name).dataset
    return dataset.to_iterable_dataset() if streaming else dataset


def read_rows(name: str, *, split: str = "train", config_name: str | None = None, skip_bad_rows: int = 0) -> LoadedRows:
    """Like `load_rows`, but also return the place of each row. Up to `skip_bad_rows` broken rows of a file are skipped.

    Skipped rows are named. They are: lines and elements of JSON files that are no rows, or whose values do not fit
    their columns, and records of a .csv file with too many or too few fields.
    """
    path = local_path(name)
    bad_rows = BadRows(skip_bad_rows)
    if not path.exists():
        if _looks_like_a_path(name):
            raise InputError(_no_such_path(path))
        dataset = keep_own_keys(_load_from_hub(name, split, config_name, streaming=False))
        return LoadedRows(dataset, f"{name} ({split})", bad_rows)
    if "[" in split:
        raise InputError(f"{name}: split={split!r}: slices work for Hub datasets only; name a whole split")
    found = _load_folder(path, split, config_name, bad_rows) if path.is_dir() else _load_file(path, bad_rows)
    dataset = keep_own_keys(require_dataset(found.rows, source=name))
    shards = f"; {_list_files(path, found.shards)}" if found.shards else ""
    return LoadedRows(dataset, f"{name} ({split}{shards})", bad_rows, found.places)


# --- where the rows are ------------------------------------------------------------------------------------------


def local_path(name: str) -> Path:
    """Return the path on disk that this name stands for, with `~` expanded.

    Raises InputError for a name that no file can have.
    """
    require_path_name(name, "dataset_name")
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user, a NUL
        shown = name if len(name) <= 100 else f"{name[:100]}..."
        raise InputError(f"{shown!r} cannot be looked up ({getattr(error, 'strerror', None) or error}). Check the name") from error  # fmt: skip
    return path


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith(SUFFIXES) or "\\" in name or name.count("/") > 1


def _no_such_path(path: Path) -> str:
    message = f"{path}: no such file or folder (looked in {path.absolute().parent})"
    if not path.parent.is_dir():
        return f"{message}; the folder {path.parent} does not exist either. Check the path"
    close = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1, cutoff=0.75)
    return message + (f'; did you mean "{path.parent / close[0]}"?' if close else ". Check the path")


def _load_from_hub(name: str, split: str, config_name: str | None, *, streaming: bool) -> Any:
    import datasets

    what = f'Hub dataset "{name}" (config {config_name or "default"}, split {split})'
    try:
        dataset = datasets.load_dataset(name, config_name, split=split, streaming=streaming)
    except Exception as error:  # the hub client, the builders and the file readers each raise their own types
        reason = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            f'"{name}" could not be loaded. Tried: file or folder {Path(name).absolute()} (does not exist); {what} '
            f"({type(error).__name__}: {reason}). Check the name, config and split, the network, and for gated or "
            "private sets `hf auth login`"
        ) from error
    if streaming:
        return dataset
    return require_dataset(dataset, source=what)


class Found(NamedTuple):
    """One split as it was read: the rows, where each stands, and the files of a folder that were put together."""

    rows: Any
    places: list[str] | None = None
    shards: Sequence[Path] = ()


def _load_folder(folder: Path, split: str, config_name: str | None, bad_rows: BadRows) -> Found:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return Found(_load_saved(folder, split))
    named = [path for suffix in SUFFIXES if (path := folder / f"{split}{suffix}").is_file()]
    if named and not names_files(folder):
        if len(named) == 1:
            return _load_file(named[0], bad_rows)
        names = ", ".join(path.name for path in named)
        raise InputError(
            f'{folder}: several files for split "{split}": {names}. Name one of them instead of the folder'
        )
    shards = find_shards(folder, config_name)
    if split in shards.splits:
        return _load_shards(folder, split, shards, bad_rows)
    if len(named) == 1:
        return _load_file(named[0], bad_rows)
    names = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
    splits = f"splits: {', '.join(shards.splits)}" if shards.splits else f"nothing ({shards.reason})"
    raise InputError(
        f'{folder}: no rows for split "{split}". Tried: a folder made by `save_to_disk`; files named '
        f"{', '.join(split + suffix for suffix in SUFFIXES)}; `datasets.load_dataset`, which finds {splits}. Found:"
        f" {names}"
    )


def _load_shards(folder: Path, split: str, shards: Shards, bad_rows: BadRows) -> Found:
    """Load the files of a split as one set, by our own reader where it knows the kind, so that errors name the file."""
    files = shards.splits[split]
    if not shards.plain or not all(path.name.endswith(SUFFIXES) for path in files):
        return Found(read_split(shards, folder, split), None, files)
    if len(files) == 1:
        return _load_file(files[0], bad_rows)._replace(shards=files)
    if files[0].suffix in (".parquet", ".csv"):
        return Found(join_tables(folder, [_read(read_table, path, bad_rows) for path in files]), None, files)
    records = [record for path in files for record in _read(read_records, path, bad_rows)]
    return Found(*to_dataset(folder, records, bad_rows), files)


def _list_files(folder: Path, files: Sequence[Path]) -> str:
    """Say how many files, and the first few as they are named in the folder: `2 files: data/a.jsonl, data/b.jsonl`."""
    names = ", ".join(os.path.relpath(path, folder.absolute()) for path in files[:3])
    return f"{len(files)} file{'s' if len(files) != 1 else ''}: {names}{', ...' if len(files) > 3 else ''}"


def _load_saved(folder: Path, split: str) -> Any:
    """Load the dataset that `save_to_disk` wrote."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # arrow, json and missing-file errors alike
        raise InputError(f"{folder}: cannot read what `save_to_disk` wrote here ({error}). Save it again") from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise InputError(f'{folder}: no split "{split}"; this folder has: {", ".join(map(str, saved))}')
        return saved[split]
    if split not in ("train", str(saved.split)):
        raise InputError(f'{folder}: no split "{split}"; this folder holds one set, saved without splits')
    return saved


# --- one file ----------------------------------------------------------------------------------------------------


def _load_file(path: Path, bad_rows: BadRows) -> Found:
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"{path}: unknown kind of file; expected one of {', '.join(SUFFIXES)}")
    if path.suffix in (".parquet", ".csv"):
        return Found(table_to_dataset(path, _read(read_table, path, bad_rows)))
    return Found(*to_dataset(path, _read(read_records, path, bad_rows), bad_rows))


def _read(reader: Callable[[Path, BadRows], T], path: Path, bad_rows: BadRows) -> T:
    """Return what a reader makes of a file. Raises InputError for one that cannot be opened, or is not there yet."""
    try:
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise InputError(f"{path}: a pointer of Git LFS, not the file itself. Run `git lfs pull` in its folder")
        return reader(path, bad_rows)
    except (OSError, EOFError, zlib.error) as error:  # unreadable, or a gzip file that is cut off or none
        raise InputError(f"{path}: cannot be read ({error}). Write or download the file again") from error


_LFS_POINTER = b"version https://git-lfs"
