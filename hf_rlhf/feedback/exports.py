"""The files of an export: rows to train on by kind, held-out rows beside them, the log, and a report."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hf_rlhf.checkpoint.manifest import flush
from hf_rlhf.data.held_out import is_held_out
from hf_rlhf.errors import InputError
from hf_rlhf.feedback.agreement import report_of
from hf_rlhf.feedback.conversion.converted import Converted, Rows, convert
from hf_rlhf.feedback.conversion.rules import ConversionRules
from hf_rlhf.feedback.event_log import EventLog
from hf_rlhf.feedback.store import PERSON, FeedbackStore
from hf_rlhf.records import write_json_lines, write_whole

KINDS = {
    "preferences": "preferences",
    "demonstrations": "sft",
    "labels": "kto",
    "ratings": "ratings",
    "rankings": "rankings",
    "spans": "spans",
    "custom": "custom",
}
"""The attributes of `Converted`, and the names of their files."""

HELD_OUT = "_eval"
EVENTS_FILE, REPORT_FILE = "events.jsonl", "report.json"
_MADE_BY = "hf-rlhf feedback export"


def write_exports(
    store: FeedbackStore,
    folder: Path,
    rules: ConversionRules | None = None,
    *,
    eval_fraction: float = 0.0,
    anonymous: bool = False,
) -> dict[str, Any]:
    """Write the rows of a store, each file whole or not at all, and return the report.

    A file without rows is not written, and one of an earlier export is removed.

    Args:
        store: of the answers.
        folder: made when it is not there.
        rules: of the conversion.
        eval_fraction: share of the prompts whose rows stand in files of their own, such as preferences_eval.jsonl. A
            prompt is on one side in all files.
        anonymous: write `person 1` and so on instead of the names of people, and not the log, in which comments and
            answers that were taken back stand too.

    Raises `InputError` for a folder with files of these names that are no export.
    """
    _require_place(folder)
    made = convert(store, rules)
    rename = _renaming(store) if anonymous else _same
    files = _files(made, eval_fraction)
    report = {
        "made_by": _MADE_BY,
        "files": {name: len(rows) for name, rows in files.items() if rows},
        **({"eval_fraction": eval_fraction} if eval_fraction else {}),
        "conversion": rename(made.report),
        "agreement": rename(report_of(store)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        _put(folder / name, [rename(row) for row in rows])
    _put_events(store, folder / EVENTS_FILE, wanted=not anonymous)
    write_whole(folder / REPORT_FILE, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    flush(folder)
    return report


def _files(made: Converted, eval_fraction: float) -> dict[str, Rows]:
    files: dict[str, Rows] = {}
    for kind, name in KINDS.items():
        rows: Rows = getattr(made, kind)
        held = [eval_fraction > 0 and is_held_out(row["prompt"], eval_fraction) for row in rows]
        for side, ending in ((False, ""), (True, HELD_OUT)):
            files[f"{name}{ending}.jsonl"] = [row for row, out in zip(rows, held, strict=True) if out == side]
    return files


def _require_place(folder: Path) -> None:
    """Raise `InputError` when the folder holds files that are no export, and that this one would write over."""
    if _is_export(folder / REPORT_FILE):
        return
    names = [f"{name}{ending}.jsonl" for name in KINDS.values() for ending in ("", HELD_OUT)]
    if found := [name for name in (*names, EVENTS_FILE, REPORT_FILE) if (folder / name).exists()]:
        raise InputError(
            f"output_dir={str(folder)!r} is invalid: it holds {found[0]}, which this export would write over."
            " Choose another folder."
        )


def _is_export(file: Path) -> bool:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("made_by") == _MADE_BY


def _put(file: Path, rows: Rows) -> None:
    if not rows:
        file.unlink(missing_ok=True)
        return
    scratch = file.with_name(f".{file.name}.tmp")
    write_json_lines(scratch, rows)
    flush(scratch)
    os.replace(scratch, file)


def _put_events(store: FeedbackStore, file: Path, *, wanted: bool) -> None:
    scratch = file.with_name(f".{file.name}.tmp")
    scratch.unlink(missing_ok=True)
    if wanted and EventLog(store, scratch).write_new():
        flush(scratch)
        os.replace(scratch, file)
    else:
        file.unlink(missing_ok=True)


def _same(content: Any) -> Any:
    return content


def _renaming(store: FeedbackStore) -> Callable[[Any], Any]:
    """Return a function that replaces the names of people where content says who annotated or wrote."""
    people = sorted({event.annotator for event in store.events() if event.annotator_kind == PERSON})
    names = {name: f"person {number}" for number, name in enumerate(people, start=1)}

    def renamed(content: Any, key: str = "") -> Any:
        if isinstance(content, Mapping):
            return {name: renamed(value, name) for name, value in content.items()}
        if isinstance(content, list):
            return [renamed(value, key) for value in content]
        named = key in ("annotator", "annotators", "name", "sources")
        return names.get(content, content) if named and isinstance(content, str) else content

    return renamed
