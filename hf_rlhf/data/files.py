"""Rows from files, folders and the Hub, and the checks that every set passes before it is read.

JSON lines are read here and not by `datasets`, so that a broken line is named as `file:line`.
"""

from __future__ import annotations

import difflib
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".parquet")
Record = tuple[str, dict[str, Any]]  # (where it stands: file:line, row)


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
    folder (made by `save_to_disk`, or holding `<split>.jsonl` and the like), or the name of a Hub dataset.
    Keys that a JSON row lacks are None. `streaming=True` gives an `IterableDataset`.

    Raises InputError when nothing is found, a file is broken (with `file:line`) or there are no rows.
    """
    path = Path(name).expanduser()
    if not path.exists():
        if _looks_like_a_path(name):
            raise InputError(_no_such_path(path))
        return _load_from_hub(name, split, config_name, streaming)
    if "[" in split:
        raise InputError(f"{name}: split={split!r}: slices work for Hub datasets only; name a whole split")
    dataset = _load_folder(path, split) if path.is_dir() else _load_file(path)
    dataset = require_dataset(dataset, source=name)
    return dataset.to_iterable_dataset() if streaming else dataset


# --- where the rows are ------------------------------------------------------------------------------------------


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith(SUFFIXES) or "\\" in name or name.count("/") > 1


def _no_such_path(path: Path) -> str:
    message = f"{path}: no such file or folder (looked in {path.absolute().parent})"
    if not path.parent.is_dir():
        return f"{message}; the folder {path.parent} does not exist either. Check the path"
    close = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1, cutoff=0.75)
    return message + (f'; did you mean "{path.parent / close[0]}"?' if close else ". Check the path")


def _load_from_hub(name: str, split: str, config_name: str | None, streaming: bool) -> Dataset | IterableDataset:
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
        return dataset  # pyright: ignore[reportReturnType]
    return require_dataset(dataset, source=what)


def _load_folder(folder: Path, split: str) -> Any:
    import datasets

    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        try:
            saved = datasets.load_from_disk(str(folder))
        except Exception as error:  # arrow, json and missing-file errors alike
            raise InputError(
                f"{folder}: cannot read what `save_to_disk` wrote here ({error}). Save it again"
            ) from error
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise InputError(f'{folder}: no split "{split}"; this folder has: {", ".join(map(str, saved))}')
            return saved[split]
        if split not in ("train", str(saved.split)):
            raise InputError(f'{folder}: no split "{split}"; this folder holds one set, saved without splits')
        return saved
    found = [path for suffix in SUFFIXES if (path := folder / f"{split}{suffix}").is_file()]
    if len(found) == 1:
        return _load_file(found[0])
    if found:
        names = ", ".join(path.name for path in found)
        raise InputError(
            f'{folder}: several files for split "{split}": {names}. Name one of them instead of the folder'
        )
    names = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
    raise InputError(
        f'{folder}: no rows for split "{split}". Tried: a folder made by `save_to_disk`; files named '
        f"{', '.join(split + suffix for suffix in SUFFIXES)}. Found: {names}"
    )


# --- one file ----------------------------------------------------------------------------------------------------


def _load_file(path: Path) -> Dataset:
    from datasets import Dataset
    from datasets.table import InMemoryTable

    if not path.name.endswith(SUFFIXES):
        raise InputError(f"{path}: unknown kind of file; expected one of {', '.join(SUFFIXES)}")
    try:
        if path.name.endswith((".csv", ".parquet")):
            return Dataset(InMemoryTable(_read_table(path)))
        records = list(read_jsonl(path) if path.name.endswith((".jsonl", ".jsonl.gz")) else read_json(path))
    except (OSError, EOFError, zlib.error) as error:  # unreadable, or a gzip file that is cut off or none
        raise InputError(f"{path}: cannot be read ({error}). Write or download the file again") from error
    return _to_dataset(path, records)


def _read_table(path: Path) -> Any:
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if path.suffix == ".parquet":
            return parquet.read_table(path)
        whole_file = csv.ReadOptions(block_size=min(path.stat().st_size + 1, 2**31 - 1))  # a row fits in a block
        return csv.read_csv(path, whole_file, csv.ParseOptions(newlines_in_values=True))
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"{path}: not a valid {path.suffix[1:]} file ({error}). Write it again") from error


def read_jsonl(path: Path) -> Iterator[Record]:
    """Yield (file:line, row) of a JSON lines file, .gz or not; blank lines and a BOM are skipped.

    Raises InputError with `file:line` for bad UTF-8, bad JSON, a torn last line and a line that is no object.
    """
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
                raise InputError(_broken_line(where, line, error)) from error
            yield where, _require_object(row, where)


def _broken_line(where: str, line: bytes, error: Exception) -> str:
    if not line.endswith(b"\n"):
        return f"{where}: the last line is torn: the file ends inside it ({error}). Remove that line or write it again"
    if isinstance(error, UnicodeDecodeError):
        return f"{where}: not UTF-8: {error.reason} at byte {error.start} of the line. Save the file as UTF-8"
    return f"{where}: not valid JSON: {error}. A .jsonl file holds one complete JSON object per line"


def _require_object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f'{where}: a {type(row).__name__} where a row was expected. Write {{"column": value, ...}}')
    return row


def read_json(path: Path) -> Iterable[Record]:
    """(where, row) of a .json file: an array of objects, or JSON lines under another name."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        content = file.read().removeprefix(b"\xef\xbb\xbf")
    if not content.lstrip().startswith(b"["):
        return read_jsonl(path)
    try:
        rows = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8: {error.reason}. Save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise InputError(f"{path}:{line}: not valid JSON: {error}. Expected an array of objects") from error
    places = [f"{path}: element {number}" for number in range(1, len(rows) + 1)]
    return [(where, _require_object(row, where)) for where, row in zip(places, rows, strict=True)]


def _to_dataset(path: Path, records: Sequence[Record]) -> Dataset:
    from datasets import Dataset

    names = dict.fromkeys(key for _, row in records for key in row)
    columns = {name: [row.get(name) for _, row in records] for name in names}
    try:
        return Dataset.from_dict(columns)
    except Exception as error:  # arrow's many types: mixed kinds in a column, half a surrogate pair, huge integers
        raise InputError(_unfit_value(records, columns) or f"{path}: {error}") from error


def _unfit_value(records: Sequence[Record], columns: dict[str, list[Any]]) -> str | None:
    """Name the first value that does not go into one arrow column with the first value of its column."""
    import pyarrow as pa

    for name, values in columns.items():
        first = next((value for value in values if value is not None), None)
        for (where, _), value in zip(records, values, strict=True):
            try:
                pa.array([first, value])
            except (pa.ArrowException, ValueError, OverflowError, TypeError) as error:
                kinds = f"a {type(value).__name__}, where the first row has a {type(first).__name__}"
                return f'{where}: column "{name}" holds {kinds} ({error}). Use one kind of value per column'
    return None


# --- checks shared by prompts and preferences --------------------------------------------------------------------


def require_dataset(dataset: Any, *, source: str) -> Dataset:
    """Raise InputError unless this is a `datasets.Dataset` with rows."""
    import datasets

    if isinstance(dataset, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        raise InputError(
            f"{source}: these are splits ({', '.join(map(str, dataset))}), not one set. Pass dataset[split]"
        )
    if isinstance(dataset, datasets.IterableDataset):
        raise InputError(f"{source}: a streamed set cannot be checked before training. Load it with streaming=False")
    if not isinstance(dataset, datasets.Dataset):
        raise InputError(f"{source}: expected a datasets.Dataset, got a {type(dataset).__name__}")
    if len(dataset) == 0:
        raise InputError(f"{source}: the set is empty (0 rows). Check the file, the split and any filter")
    return dataset


def require_columns(found: Sequence[str], names: Sequence[str], *, source: str) -> None:
    """Raise InputError that names the columns of `names` missing among those `found`, and the closest found."""
    missing = [name for name in names if name not in found]
    if not missing:
        return
    hints = []
    for name in missing:
        close = difflib.get_close_matches(name, found, n=1, cutoff=0.5)
        hints += [f'Did you mean "{close[0]}"? Then use dataset.rename_column("{close[0]}", "{name}")'] if close else []
    which = " and ".join(f'"{name}"' for name in missing)
    raise InputError(
        f"{source}: no column {which}; columns found: {', '.join(found) or 'none'}. {' '.join(hints)}".rstrip()
    )


def read_columns(dataset: Dataset, names: Sequence[str]) -> dict[str, list[Any]]:
    """These columns as plain Python lists, whatever format is set on the dataset."""
    return dataset.with_format(None).select_columns(list(names))[:]  # pyright: ignore[reportReturnType]


def list_rows(rows: Sequence[int], shown: int = 5) -> str:
    """Row numbers for a message: `3 rows (0, 4, 9)`, the first few of many followed by an ellipsis."""
    numbers = ", ".join(str(row) for row in rows[:shown]) + (", ..." if len(rows) > shown else "")
    return f"{len(rows)} row{'s' if len(rows) != 1 else ''} ({numbers})"
