"""`hf-rlhf feedback`: rows and records into a store, and a store into rows, a report and a dataset on the Hub."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_rlhf.data.files import local_path, read_rows
from hf_rlhf.data.json_files import read_records
from hf_rlhf.data.rows import BadRows
from hf_rlhf.errors import InputError
from hf_rlhf.feedback.agreement import report_of
from hf_rlhf.feedback.agreement_page import headline, judged, notes, write_page
from hf_rlhf.feedback.conversion.converted import convert
from hf_rlhf.feedback.event_log import merge_events
from hf_rlhf.feedback.exports import EVENTS_FILE, REPORT_FILE, write_exports
from hf_rlhf.feedback.form_files import load_form
from hf_rlhf.feedback.imports.argilla import from_argilla, to_argilla
from hf_rlhf.feedback.imports.imported import FieldNames, Imported
from hf_rlhf.feedback.imports.label_studio import from_label_studio, to_label_studio
from hf_rlhf.feedback.rows import tasks_from_rows
from hf_rlhf.feedback.store import FeedbackStore
from hf_rlhf.hub.dataset_card import feedback_card
from hf_rlhf.hub.push import push_dataset
from hf_rlhf.progress import say
from hf_rlhf.recipes.feedback_arguments import (
    ARGILLA,
    AUTO,
    EVENTS,
    LABEL_STUDIO,
    ROWS,
    ExportArguments,
    ImportArguments,
    PushArguments,
    ReportArguments,
    StoreArguments,
)
from hf_rlhf.records import write_whole

_JSON = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
Record = tuple[str, Mapping[str, Any]]


def import_feedback(where: StoreArguments, args: ImportArguments) -> None:
    """Add tasks, and the answers of records of another tool, to a store.

    Raises `InputError` for anything wrong in the file, before the store is made or changed.
    """
    name, records = str(args.dataset_name), _records(args)
    format = _format_of(records[0][1]) if args.format == AUTO else args.format
    if format == EVENTS:
        with FeedbackStore(where.store, create=False) as store:
            added, skipped = merge_events(store, [record for _, record in records])
        say(
            f"{name}: {added} new answers, {skipped} skipped, of tasks that {where.store} has not or older than its own"
        )
        return
    if format == ROWS:
        form = load_form(args.form)
        rows = [record for _, record in records]
        tasks = tasks_from_rows(rows, form, preferences_are_gold=args.preferences_are_gold, source=name)
        imported = Imported({task.id: task for task in tasks})
    else:
        fields = FieldNames(args.prompt_field, tuple(args.completion_fields or ()))
        if format == ARGILLA:
            imported = from_argilla(records, fields, suggestions=args.model_answers)
        else:
            imported = from_label_studio(records, fields, predictions=args.model_answers)
    with FeedbackStore(where.store) as store:
        tasks_added, events_added = imported.add_to(store)
    say(
        f"{name} ({format}): {tasks_added} new tasks of {len(imported.tasks)}, {events_added} new answers of"
        f" {len(imported.events)}, in {where.store}"
    )
    for what, count in sorted(imported.omitted.items()):
        say(f"skipped: {count} {what}")


def export_feedback(where: StoreArguments, args: ExportArguments) -> None:
    """Write the rows of a store, or all of it as a file of another tool."""
    with FeedbackStore(where.store, create=False) as store:
        folder = Path(args.output_dir)
        if args.to == ROWS:
            report = write_exports(
                store, folder, args.rules(), eval_fraction=args.eval_fraction, anonymous=args.anonymous
            )
            _say_files(report, folder)
            return
        records, omitted = (to_argilla if args.to == ARGILLA else to_label_studio)(store)
        folder.mkdir(parents=True, exist_ok=True)
        file = write_whole(folder / f"{args.to}.json", json.dumps(records, indent=1) + "\n")
        say(
            f"{file}: {len(records)} records"
            + "".join(f"; {count} tasks {why}" for why, count in sorted(omitted.items()))
        )


def report_feedback(where: StoreArguments, args: ReportArguments) -> None:
    """Print the agreement of the annotators of a store, and write it as a page."""
    with FeedbackStore(where.store, create=False) as store:
        report, conversion = report_of(store), convert(store, args.rules()).report
    _print_tables(report)
    for note in notes(report):
        say(f"look at: {note}")
    say(f"wrote {write_page(report, conversion, Path(args.output_dir))}")


def push_feedback(where: StoreArguments, args: PushArguments) -> None:
    """Write the rows of a store with a card, and push them to the Hub as a dataset.

    Raises `InputError` where nothing would be pushed, and `PushError` when the push fails.
    """
    folder, name = Path(args.output_dir), str(args.hub_dataset_id)
    with FeedbackStore(where.store, create=False) as store:
        report = write_exports(store, folder, args.rules(), eval_fraction=args.eval_fraction, anonymous=args.anonymous)
    if not report["files"]:
        raise InputError(f"store={where.store} is invalid: its answers give no row to push. Answer some tasks first.")
    write_whole(folder / "README.md", feedback_card(dataset_id=name, report=report, license=args.license))
    _say_files(report, folder)
    files = [*report["files"], REPORT_FILE, "README.md", *([] if args.anonymous else [EVENTS_FILE])]
    say(f"pushed to {push_dataset(folder, name, files, private=args.private)}")


def _records(args: ImportArguments) -> list[Record]:
    """Return rows with their places; those of JSON as they are, since records of other tools fit no table."""
    name = str(args.dataset_name)
    path = local_path(name)
    if path.is_file() and path.name.endswith(_JSON):
        try:
            records: list[Record] = list(read_records(path, BadRows(args.skip_bad_rows)))
        except (OSError, EOFError) as error:
            raise InputError(f"dataset_name={name} is invalid: it cannot be read ({error}). Check the file.") from error
    else:
        rows = read_rows(
            name, split=args.dataset_split, config_name=args.dataset_config, skip_bad_rows=args.skip_bad_rows
        )
        records = [(rows.place(number), row) for number, row in enumerate(rows.by_row())]
    if not records:
        raise InputError(f"dataset_name={name} is invalid: it holds no rows. Check the file.")
    return records


def _format_of(record: Mapping[str, Any]) -> str:
    if isinstance(record.get("fields"), Mapping):
        return ARGILLA
    if isinstance(record.get("data"), Mapping):
        return LABEL_STUDIO
    return EVENTS if {"uuid", "task", "annotator", "kind"} <= set(record) else ROWS


def _say_files(report: Mapping[str, Any], folder: Path) -> None:
    for name, count in report["files"].items():
        say(f"{folder / name}: {count} rows")
    for kind, reasons in report["conversion"]["omitted"].items():
        say(f"without a row of {kind}: " + ", ".join(f"{count} ({why})" for why, count in reasons.items()))
    if not report["files"]:
        say("no answer gave a row")


def _print_tables(report: Mapping[str, Any]) -> None:
    """Print the agreement by form, and the checks of each annotator."""
    from rich.console import Console
    from rich.table import Table

    if os.environ.get("RANK", "0") != "0":
        return
    console = Console(highlight=False)
    say(headline(report))
    agreement = Table("judged", "tasks", "agree", "95 %", "nominal", "ordinal", "interval", title="agreement (alpha)")
    for each in report["agreement"]:
        alphas = [each["alpha"].get(level, {}).get("value") for level in ("nominal", "ordinal", "interval")]
        share, low, high = (each["percent"][key] for key in ("value", "low", "high"))
        between = "" if low is None else f"{low:.0%} to {high:.0%}"
        agreement.add_row(
            *map(_plain, (judged(each), str(each["tasks"]), _share(share), between, *map(_number, alphas)))
        )
    people = Table(
        "annotator", "kind", "answers", "skips", "flags", "first shown", "gold", "median s", title="annotators"
    )
    for each in report["annotators"]:
        gold = f"{each['gold']['right']} of {each['gold']['n']}" if each["gold"]["n"] else ""
        seconds = each["pace"]["median_seconds"]
        counts = [str(each[name]) for name in ("answers", "skips", "flags")]
        cells = [each["name"], each["kind"], *counts, _share(each["position"]["share"]), gold, "" if seconds is None else f"{seconds:.1f}"]  # fmt: skip
        people.add_row(*map(_plain, cells))
    for table in (agreement, people):
        if table.row_count:
            console.print(table)


def _plain(text: str) -> Any:
    """Return text that rich takes for no markup, fit for one line of a terminal."""
    from rich.text import Text

    from hf_rlhf.credentials import printable

    return Text(printable(text, 60))


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


ACTIONS: Sequence[str] = ("import", "export", "report", "push")
