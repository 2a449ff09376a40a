"""Rows of JSON files, read here and not by `datasets`, so that a broken one is named as `file:line`."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from hf_rlhf.credentials import printable
from hf_rlhf.data.json_columns import fits_dicts, kind_of, make_dataset
from hf_rlhf.data.rows import BadRows
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

Record = tuple[str, dict[str, Any]]  # (where it stands: file:line, row)

BOM = b"\xef\xbb\xbf"
MAX_LINE_BYTES = 64 * 2**20
MAX_ARRAY_BYTES = 512 * 2**20
MAX_COLUMNS = 1000
MAX_LEVELS = 16
"""Most levels of lists and objects inside a row: `datasets` takes twice the time for each level more."""


def read_records(path: Path, bad_rows: BadRows) -> list[Record]:
    """Read the rows of a .jsonl or .json file, .gz or not, with the place of each; bad ones go to `bad_rows`."""
    with _open(path) as file:
        if path.name.endswith((".json", ".json.gz")) and _is_array(file):
            content = file.read(MAX_ARRAY_BYTES + 1)
            if len(content) > MAX_ARRAY_BYTES:
                raise InputError(
                    f"{path}: an array of more than {MAX_ARRAY_BYTES} bytes, which has to be read as a whole. Write it"
                    " as .jsonl, an object per line"
                )
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
                bad_rows.add(where, f"a line of more than {MAX_LINE_BYTES} bytes. {_rule(path)}")
                continue
            try:
                row = _parse(line.rstrip(b"\r\n"))
            except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
                bad_rows.add(where, _broken_line(line, error, _rule(path)), error)
                continue
            if (problem := _row_problem(row)) is None:
                yield where, row
            else:
                bad_rows.add(where, problem)


def _rule(path: Path) -> str:
    if path.name.endswith((".json", ".json.gz")):
        return "A .json file holds an array of objects, or one complete JSON object per line"
    return "A .jsonl file holds one complete JSON object per line"


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # pyright: ignore[reportReturnType]


def _is_array(file: BinaryIO) -> bool:
    """Return whether the file's first character opens an array.

    If it does, the file is rewound to its start. Otherwise its position is arbitrary.
    """
    for block in iter(lambda: file.read(2**16), b""):
        text = block.removeprefix(BOM).lstrip()
        if text:
            file.seek(0)
            return text.startswith(b"[")
    return False


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines, none kept in memory beyond one byte more than `MAX_LINE_BYTES`."""
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


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _broken_line(line: bytes, error: Exception, rule: str) -> str:
    if _is_torn(line, error):
        return f"the last line is torn: the file ends inside it ({error}). Remove that line or write it again"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason} at byte {error.start} of the line. Save the file as UTF-8"
    return f"not valid JSON: {error}. {rule}"


def _is_torn(line: bytes, error: Exception) -> bool:
    """Return whether a last line ends before its row does; one that is whole may have another error."""
    if line.endswith(b"\n") or line.rstrip().endswith(b"}"):
        return False
    return isinstance(error, (json.JSONDecodeError, UnicodeDecodeError))


def _row_problem(row: Any) -> str | None:
    if not isinstance(row, dict):
        return f'a {type(row).__name__} where a row was expected. Write {{"column": value, ...}}'
    return f"nested more than {MAX_LEVELS} levels deep" if _is_deeper(row, MAX_LEVELS) else None


def _is_deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_is_deeper(each, levels - 1) for each in inner)


def _elements(path: Path, content: bytes, bad_rows: BadRows) -> Iterator[Record]:
    """Yield the objects of a JSON array, each with the line that it begins in."""
    try:
        text = content.removeprefix(BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8: {error.reason}. Save the file as UTF-8") from error
    counted = text.index("[")
    line = 1 + text.count("\n", 0, counted)
    try:
        for number, (start, row) in enumerate(_array(text), start=1):
            line, counted = line + text.count("\n", counted, start), start
            where = f"{path}:{line} (element {number})"
            if isinstance(row, ValueError):
                bad_rows.add(where, str(row))
            elif problem := _row_problem(row):
                bad_rows.add(where, problem)
            else:
                yield where, row
    except (json.JSONDecodeError, RecursionError) as error:
        line = getattr(error, "lineno", line)
        raise InputError(f"{path}:{line}: not valid JSON: {error}. Expected an array of objects") from error


def _array(text: str) -> Iterator[tuple[int, Any]]:
    """Yield (where it begins, element) of a JSON array. Raises ValueError for an element that has a key twice."""
    position = _skip_space(text, text.index("[") + 1)
    ends = text.startswith("]", position)
    while not ends:
        start = position
        try:
            element, position = _DECODER.raw_decode(text, start)
        except json.JSONDecodeError:
            raise
        except ValueError as error:
            element, position = error, json.JSONDecoder().raw_decode(text, start)[1]
        yield start, element
        position = _skip_space(text, position)
        ends = text.startswith("]", position)
        if not ends and not text.startswith(",", position):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, position)
        position = position if ends else _skip_space(text, position + 1)
    if (rest := _skip_space(text, position + 1)) < len(text):
        raise json.JSONDecodeError("Extra data", text, rest)


def _skip_space(text: str, start: int) -> int:
    found = _SPACE.match(text, start)
    return found.end() if found else start


_SPACE = re.compile(r"[ \t\n\r]*")


# --- from rows to columns ----------------------------------------------------------------------------------------


def to_dataset(path: Path, records: Sequence[Record], bad_rows: BadRows) -> tuple[Dataset, list[str]]:
    """Return the rows as a set, with the place of each; rows whose values do not fit their columns go to `bad_rows`."""
    names = list(dict.fromkeys(key for _, row in records for key in row))
    if len(names) > MAX_COLUMNS:
        raise InputError(
            f"{path}: the rows have {len(names)} different keys, such as {printable(', '.join(names[:3]), 200)}; a set"
            f" has at most {MAX_COLUMNS} columns. Give every row the same keys"
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
    columns = {name: [row.get(name) for _, row in records] for name in names}
    return make_dataset(columns), [where for where, _ in records]


def _misfits(names: Sequence[str], records: Sequence[Record]) -> dict[int, str]:
    """Return what does not go into one column with the values of the kind that most rows have there, by row."""
    problems: dict[int, str] = {}
    for name in names:
        values = [row.get(name) for _, row in records]
        kinds = Counter(kind_of(value) for value in values if value is not None and value != [])  # which say nothing
        usual = kinds.most_common(1)[0][0] if kinds else "null"
        find = _misfits_of_dicts if usual.endswith("dict") else _misfits_of_arrow
        for row, reason in find(values, usual).items():
            found = f"a {kind_of(values[row])}, where most rows have a {usual}"
            problems[row] = f'column "{name}" holds {found}{reason}. Use one kind of value per column'
    return problems


def _misfits_of_dicts(values: Sequence[Any], usual: str) -> dict[int, str]:
    return {row: "" for row, value in enumerate(values) if not fits_dicts(value, usual)}


def _misfits_of_arrow(values: Sequence[Any], usual: str) -> dict[int, str]:
    problems: dict[int, str] = {}
    known: list[Any] = []  # values whose arrow types make up the column's
    column = None
    in_turn = sorted(range(len(values)), key=lambda row: kind_of(values[row]) != usual)
    for row in in_turn:
        try:
            merged = _arrow_type([*known, values[row]])
        except _MISFIT_ERRORS as error:
            problems[row] = f" ({_short(error)})"
            continue
        if merged != column and len(known) < _MOST_KNOWN:
            known, column = [*known, values[row]], merged
    return problems


_MISFIT_ERRORS = (ValueError, OverflowError, TypeError, RecursionError, NotImplementedError)  # arrow's are of these too
_MOST_KNOWN = 100


def _arrow_type(values: Sequence[Any]) -> Any:
    import pyarrow as pa

    return pa.array(values).type


def _short(error: Exception) -> str:
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0], 200)
