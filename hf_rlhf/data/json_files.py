"""Rows of JSON files, read here and not by `datasets`, so that a broken one is named as `file:line`."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from hf_rlhf.data.bad_rows import BadRows
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

Record = tuple[str, dict[str, Any]]  # (where it stands: file:line, row)

BOM = b"\xef\xbb\xbf"
MAX_LINE_BYTES = 64 * 2**20
MAX_COLUMNS = 1000
MAX_LEVELS = 16
"""Of lists and objects inside a row: `datasets` takes twice the time for each level more."""


def read_records(path: Path, bad_rows: BadRows) -> list[Record]:
    """The rows of a .jsonl or .json file, .gz or not, with where each stands; bad ones go to `bad_rows`."""
    if path.name.endswith((".json", ".json.gz")):
        with _open(path) as file:
            content = file.read().removeprefix(BOM)
        if content.lstrip().startswith(b"["):
            return list(_elements(path, content, bad_rows))
    return list(read_jsonl(path, bad_rows))


def read_jsonl(path: Path, bad_rows: BadRows | None = None) -> Iterator[Record]:
    """Yield (file:line, row) of a JSON lines file, .gz or not; blank lines and a BOM are skipped.

    Bad UTF-8, bad JSON, a key that is there twice, a torn last line, one of more than 64 MiB and one that is no object
    go to `bad_rows`, which raises InputError with `file:line` when there are more than it takes (by default, none).
    """
    bad_rows = bad_rows or BadRows()
    with _open(path) as file:
        for number, raw in enumerate(_lines(file), start=1):
            line = raw.removeprefix(BOM) if number == 1 else raw
            if not line.strip():
                continue
            where = f"{path}:{number}"
            if len(line) > MAX_LINE_BYTES:
                bad_rows.add(where, f"a line of more than {MAX_LINE_BYTES} bytes. {_JSONL_RULE}")
                continue
            try:
                row = _parse(line.rstrip(b"\r\n"))
            except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
                bad_rows.add(where, _broken_line(line, error), error)
                continue
            if (problem := _row_problem(row)) is None:
                yield where, row
            else:
                bad_rows.add(where, problem)


_JSONL_RULE = "A .jsonl file holds one complete JSON object per line"


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # pyright: ignore[reportReturnType]


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines, none kept in memory beyond one byte more than `MAX_LINE_BYTES`."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES + 1)


def _parse(text: bytes) -> Any:
    return json.loads(text.decode("utf-8"), object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f'the key "{twice}" is there twice')
    return row


def _broken_line(line: bytes, error: Exception) -> str:
    if not line.endswith(b"\n"):
        return f"the last line is torn: the file ends inside it ({error}). Remove that line or write it again"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason} at byte {error.start} of the line. Save the file as UTF-8"
    return f"not valid JSON: {error}. {_JSONL_RULE}"


def _row_problem(row: Any) -> str | None:
    if not isinstance(row, dict):
        return f'a {type(row).__name__} where a row was expected. Write {{"column": value, ...}}'
    return f"nested more than {MAX_LEVELS} levels deep" if _is_deeper(row, MAX_LEVELS) else None


def _is_deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_is_deeper(each, levels - 1) for each in inner)


def _elements(path: Path, content: bytes, bad_rows: BadRows) -> Iterator[Record]:
    """The objects of a JSON array."""
    try:
        rows = _parse(content)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8: {error.reason}. Save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise InputError(f"{path}:{line}: not valid JSON: {error}. Expected an array of objects") from error
    for number, row in enumerate(rows, start=1):
        where = f"{path}: element {number}"
        if (problem := _row_problem(row)) is None:
            yield where, row
        else:
            bad_rows.add(where, problem)


# --- from rows to columns ----------------------------------------------------------------------------------------


def to_dataset(path: Path, records: Sequence[Record], bad_rows: BadRows) -> tuple[Dataset, list[str]]:
    """The rows as a set, with where each stands; rows whose values do not fit into their columns go to `bad_rows`."""
    names = list(dict.fromkeys(key for _, row in records for key in row))
    if len(names) > MAX_COLUMNS:
        raise InputError(
            f"{path}: the rows have {len(names)} different keys, such as {', '.join(names[:3])}; a set has at most"
            f" {MAX_COLUMNS} columns. Give every row the same keys"
        )
    try:
        return _from_records(names, records)
    except Exception:  # arrow's many types: mixed kinds in a column, half a surrogate pair, huge integers
        misfits = _misfits(names, records)
    for row, problem in sorted(misfits.items()):
        bad_rows.add(records[row][0], problem)
    try:
        return _from_records(names, [record for row, record in enumerate(records) if row not in misfits])
    except Exception as error:
        raise InputError(f"{path}: these rows do not make a table ({_short(error)}). Give every row the same kinds of values") from error  # fmt: skip


def _from_records(names: Sequence[str], records: Sequence[Record]) -> tuple[Dataset, list[str]]:
    from datasets import Dataset

    columns = {name: [row.get(name) for _, row in records] for name in names}
    return Dataset.from_dict(columns), [where for where, _ in records]


def _misfits(names: Sequence[str], records: Sequence[Record]) -> dict[int, str]:
    """What does not go into one arrow column with the first value of the kind that most rows have there, by row."""
    problems: dict[int, str] = {}
    for name in names:
        values = [row.get(name) for _, row in records]
        kinds = Counter(type(value) for value in values if value is not None)
        usual = kinds.most_common(1)[0][0] if kinds else None
        first = next((value for value in values if type(value) is usual and _misfit(value) is None), None)
        for row, value in enumerate(values):
            if (error := _misfit(first, value)) is not None:
                found = f"a {type(value).__name__}, where most rows have a {usual.__name__ if usual else 'null'}"
                problems[row] = f'column "{name}" holds {found} ({error}). Use one kind of value per column'
    return problems


def _misfit(*values: Any) -> str | None:
    import pyarrow as pa

    try:
        pa.array(values)
    except (pa.ArrowException, ValueError, OverflowError, TypeError, RecursionError) as error:
        return _short(error)
    return None


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
