"""The answers of a run in a file that is only appended to, so that a run killed in the middle asks nothing twice."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_rlhf.errors import InputError
from hf_rlhf.records import append_json_lines

JOURNAL_FILE = "journal.jsonl"
_BEGIN = "begin"


class Journal:
    """Answers by their keys: the first line says what they were made by, each other line holds one answer.

    Args:
        folder: of the run.
        made_by: settings and digests that all answers depend on. A journal that was made by others is not continued.

    Raises `InputError` where the file is damaged, or was made by other settings.
    """

    def __init__(self, folder: Path, made_by: Mapping[str, Any]):
        self.file = folder / JOURNAL_FILE
        self._answers: dict[str, dict[str, Any]] = {}
        rows = self._read_whole_lines()
        if rows:
            _require_same(rows[0].get("made_by", {}), json.loads(json.dumps(made_by)))
        else:
            self._append([{"key": _BEGIN, "made_by": made_by}])
        self._answers = {row["key"]: row for row in rows[1:]}
        self.kept = len(self._answers)

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._answers[key]

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append answers, each with its `key`, and wait until they are on the disk.

        One that is to be asked for `again` by a run that resumes is known to this run alone.
        """
        self._append([row for row in rows if not row.get("again")])
        self._answers.update({row["key"]: dict(row) for row in rows})

    def _append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        append_json_lines(self.file, rows)
        with self.file.open("rb+") as lines:
            os.fsync(lines.fileno())

    def _read_whole_lines(self) -> list[dict[str, Any]]:
        """Read the rows, and cut off a last line that a kill has torn."""
        if not self.file.is_file():
            return []
        content = self.file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.file, whole)
        rows = []
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                row = json.loads(line)
                row["key"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{self.file}, line {number}: it is damaged ({error}). Delete the lines from there on, and resume."
                ) from error
            rows.append(row)
        return rows


def _require_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            raise InputError(
                f"{name}={now.get(name)} is invalid for a run that resumes: it was {before.get(name)} before, and the"
                " answers so far depend on it. Give the value from before, or another output_dir."
            )
