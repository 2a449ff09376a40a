"""Tables of .parquet and .csv files, read here and not by `datasets`, so that a broken record is named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rlhf.credentials import printable
from hf_rlhf.data.json_columns import keep_own_keys, make_dataset, read_values
from hf_rlhf.data.json_files import BOM
from hf_rlhf.data.rows import BadRows
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset


def read_table(path: Path, bad_rows: BadRows) -> Any:
    """Return the arrow table of a .parquet or .csv file; records of a wrong width go to `bad_rows`."""
    return _read_csv(path, bad_rows) if path.suffix == ".csv" else _read_parquet(path)


def join_tables(folder: Path, tables: Sequence[Any]) -> Dataset:
    """Return the rows of all tables as one set; a column that a file does not have is None.

    Raises InputError for a column that holds another kind of value in another file. Inside dicts each row keeps its
    own.
    """
    import pyarrow as pa

    try:
        return table_to_dataset(folder, pa.concat_tables(tables, promote_options="permissive"))
    except pa.ArrowException:
        sets = [keep_own_keys(table_to_dataset(folder, table)) for table in tables]
    names = dict.fromkeys(name for each in sets for name in each.column_names)
    parts = [{name: [None] * len(each) for name in names} | read_values(each, each.column_names) for each in sets]
    try:
        return make_dataset({name: [value for part in parts for value in part[name]] for name in names})
    except Exception as error:  # arrow's many types
        reason = printable(str(error), 200)
        raise InputError(f"{folder}: the files do not have the same columns ({reason}). Name one of them") from error


def table_to_dataset(path: Path, table: Any) -> Dataset:
    """Return the table as a set. Raises InputError for columns that no set can have."""
    from datasets import Dataset
    from datasets.table import InMemoryTable

    names = table.column_names
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f'{path}: the column "{twice[0]}" is there twice. Rename or remove one')
    try:
        return Dataset(InMemoryTable(table))
    except Exception as error:  # kinds of columns that arrow has and `datasets` has not
        raise InputError(f"{path}: these columns do not make a set ({error}). Write it again") from error


def _read_parquet(path: Path) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        table.validate(full=True)  # text that is not UTF-8 included
        return table
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"{path}: not a valid parquet file ({error}). Write it again") from error


# Arrow, as RFC 4180, knows quotes at the beginning of a field only; inside, "" stands for one
_QUOTED_FIELD = re.compile(rb'(?:\A|(?<=[,\r\n]))"(?:[^"]*"")*[^"]*(?P<end>"?)')


def _read_csv(path: Path, bad_rows: BadRows) -> Any:
    import pyarrow as pa
    from pyarrow import csv

    misfits = []

    def note(record: Any) -> str:
        misfits.append(record)
        return "skip"

    content = path.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8: {error.reason}. Save the file as UTF-8") from error
    for field in _QUOTED_FIELD.finditer(content.removeprefix(BOM)):
        if not field["end"]:  # arrow would take all rows up to the end of the file for this field
            line = content.count(b"\n", 0, field.start()) + 1
            raise InputError(
                f"{path}:{line}: a quote opens here and is never closed. Close it, or write the file again"
            )
    # A row has to fit in a block. One thread, as several do not count the records
    whole_file = csv.ReadOptions(block_size=min(len(content) + 1, 2**31 - 1), use_threads=False)
    try:
        table = csv.read_csv(
            pa.BufferReader(content), whole_file, csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note)
        )
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"{path}: not a valid csv file ({error}). Write it again") from error
    for record in misfits:
        bad_rows.add(
            f"{path}: record {record.number} (the head is 1)",
            f"not a valid csv record: Expected {record.expected_columns} columns, got {record.actual_columns}. "
            "Put fields with commas in quotes",
        )
    return table
