"""People answer on a page of this machine: rows become tasks in a store, and the page is served until they are done."""

import shlex
import signal
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_rlhf.data.files import read_rows
from hf_rlhf.errors import InputError, RunStopped
from hf_rlhf.feedback.form_files import load_form
from hf_rlhf.feedback.forms import Form
from hf_rlhf.feedback.page.desk import Desk, Refused
from hf_rlhf.feedback.page.security import is_loopback
from hf_rlhf.feedback.page.serve import PORT, Server
from hf_rlhf.feedback.page.server import require_extra
from hf_rlhf.feedback.rows import tasks_from_rows
from hf_rlhf.feedback.store import ANSWER, FLAG, PERSON, SKIP, FeedbackStore
from hf_rlhf.feedback.tasks import Task
from hf_rlhf.progress import say
from hf_rlhf.recipes.label_arguments import LabelArguments

LONGEST_GUIDELINES = 100_000
_LINE_SECONDS, _FAREWELL_SECONDS = 10.0, 1.5


def label_dataset(args: LabelArguments) -> None:
    """Ask people about the rows of a dataset on a page, or write a Space that does.

    Raises `InputError` for anything wrong in the flags or the rows, before the store is made; `RunStopped` after
    Ctrl+C, which is how labelling ends unless `stop_when_done`.
    """
    require_extra()
    form, guidelines = load_form(args.form), _read_guidelines(args.guidelines)
    tasks = _tasks(args, form)
    if args.space is not None:
        from hf_rlhf.feedback.page.space import write_space

        folder = write_space(args.space, tasks, guidelines, overlap=args.overlap, gold_every=args.gold_every)
        say(f"wrote a Space with {len(tasks)} tasks to {folder}. Its README.md says how to start it.")
        return
    with FeedbackStore(args.store, create=args.dataset_name is not None) as store:
        added = store.add_tasks(tasks)
        settings = {"guidelines": guidelines, "overlap": args.overlap, "gold_every": args.gold_every}
        for name, value in settings.items():
            if value is not None:
                store.set(name, str(value))
        if tasks:
            say(f"{args.dataset_name}: {len(tasks)} tasks, {added} of them new")
        label(
            store,
            annotator=args.annotator,
            stop_when_done=args.stop_when_done,
            host=args.host,
            port=args.port,
            open_browser=args.open,
        )


def label(
    store: FeedbackStore,
    *,
    annotator: str | None = None,
    until: Callable[[], bool] | None = None,
    stop_when_done: bool = False,
    host: str = "127.0.0.1",
    port: int = PORT,
    open_browser: bool = False,
) -> None:
    """Serve the page of a store, and return when enough is answered.

    Args:
        store: with tasks.
        annotator: name of the one who answers; None asks each person.
        until: whether enough is answered; asked after each answer.
        stop_when_done: whether to return when nothing is left to ask. With `until` it is always so.
        host: address to listen on.
        port: 0 takes a free one.
        open_browser: whether to open the page.

    Raises `InputError` for a store without tasks, an annotator's name that cannot be used, or an address that cannot
    be listened on; `RunStopped` after Ctrl+C or SIGTERM.
    """
    desk = Desk(store, annotator=annotator, until=until, stop_when_done=stop_when_done)
    if annotator is not None:
        try:
            desk.annotator = desk.name_of(annotator)
        except Refused as error:
            raise InputError(f"annotator={annotator} is invalid: {error}") from error
    if next(iter(store.tasks()), None) is None:
        raise InputError(
            f"store={store.file} is invalid: it holds no tasks. Give dataset_name, with rows to ask about."
        )
    server = Server(desk, host, port)
    if not is_loopback(host):
        say(
            f"warning: everybody who reaches {host}:{server.port} can ask for the page, and it travels unencrypted. The"
            " token in the address keeps others out: give the address only to annotators."
        )
    with _stop_signals() as stopped:
        with server:
            say(f"open this page in a browser:\n\n  {server.address}\n\nCtrl+C ends; each answer is saved at once.")
            if open_browser and not webbrowser.open(server.address):
                say("no browser was found here: open the address by hand")
            _serve(server, stopped)
        summary = _summary(store, annotator)
        if stopped:
            raise RunStopped(stopped[0], summary)
    say(summary if until is None else summary.splitlines()[0])  # with until, the caller continues


def _read_guidelines(name: str | None) -> str | None:
    if name is None:
        return None
    try:
        text = Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"guidelines={name} is invalid: it cannot be read ({reason}). Check the path.") from error
    if len(text) > LONGEST_GUIDELINES:
        raise InputError(
            f"guidelines={name} is invalid: it has {len(text)} characters, and {LONGEST_GUIDELINES} are allowed. Give a"
            " shorter text."
        )
    return text.strip()


def _tasks(args: LabelArguments, form: Form) -> list[Task]:
    if args.dataset_name is None:
        if args.space is not None:
            with FeedbackStore(args.store, create=False) as store:
                return list(store.tasks())
        return []
    rows = read_rows(
        args.dataset_name,
        split=args.dataset_split,
        config_name=args.dataset_config,
        skip_bad_rows=args.skip_bad_rows,
    )
    return tasks_from_rows(
        rows.by_row()[: args.limit],
        form,
        preferences_are_gold=args.preferences_are_gold,
        source=rows.source,
    )


def _serve(server: Server, stopped: list[int]) -> None:
    """Wait for the end, and print how far the annotators are whenever that has changed."""
    store, due = server.desk.store, time.monotonic() + _LINE_SECONDS
    shown = _counts(store)
    while server.wait(0.2) and not stopped:
        if server.desk.finished():
            time.sleep(_FAREWELL_SECONDS)  # the page asks for its last files
            return
        if time.monotonic() >= due:
            due = time.monotonic() + _LINE_SECONDS
            if (line := _counts(store)) != shown:
                say(line)
                shown = line


def _counts(store: FeedbackStore) -> str:
    counts: dict[str, int] = dict.fromkeys((ANSWER, SKIP, FLAG), 0)
    for event in store.current():
        if event.annotator_kind == PERSON:
            counts[event.kind] += 1
    words = f"{counts[ANSWER]} answer{'' if counts[ANSWER] == 1 else 's'}"
    more = [f"{counts[kind]} {name}" for kind, name in ((SKIP, "skipped"), (FLAG, "flagged")) if counts[kind]]
    return ", ".join([words, *more])


def _summary(store: FeedbackStore, annotator: str | None) -> str:
    file = shlex.quote(str(store.file))
    again = f"hf-rlhf label --store {file}" + (f" --annotator {shlex.quote(annotator)}" if annotator else "")
    return f"{_counts(store)}: saved in {store.file}\ncontinue: {again}\nnext: hf-rlhf feedback export --store {file}"


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM while the block runs, where signals arrive: in the main thread."""
    stopped: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def note(number: int, frame: Any) -> None:
        stopped.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
