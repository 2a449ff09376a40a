"""The page on a Space: asks for a password, and pushes the answers to a dataset.

Settings are variables of the environment: `LABEL_PASSWORD`, `LABEL_DATASET` and `HF_TOKEN` (secrets of the Space),
`LABEL_DATA` (a folder, by default /data) and `PORT`.
"""

import hashlib
import hmac
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_rlhf.errors import InputError
from hf_rlhf.feedback.event_log import EventLog, merge_events
from hf_rlhf.feedback.page.desk import Desk
from hf_rlhf.feedback.page.security import Rules, respond
from hf_rlhf.feedback.page.server import make_app
from hf_rlhf.feedback.store import FeedbackStore

TASKS_FILE, EVENTS_FOLDER = "tasks.db", "events"
MINUTES = 2
_EMBEDDED_IN = "https://huggingface.co"


def main() -> int:
    """Serve the page until the Space ends; return the exit status."""
    import uvicorn

    port = int(os.environ.get("PORT", "7860"))
    try:
        with _application(os.environ, port) as app:
            config = uvicorn.Config(
                app, host="0.0.0.0", port=port, log_level="warning", access_log=False, server_header=False
            )
            _serve(uvicorn.Server(config))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


def _serve(server: Any) -> None:
    """Serve until SIGTERM or SIGINT, and return then: what comes after it pushes the last answers.

    uvicorn raises the signal once more when it has ended in the main thread, which would kill the process before that.
    """
    ended = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: ended.set())
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while thread.is_alive() and not ended.wait(0.2):
        pass
    server.should_exit = True
    thread.join(timeout=10)


@contextmanager
def _application(environment: Mapping[str, str], port: int) -> Iterator[Callable[..., Any]]:
    password = environment.get("LABEL_PASSWORD", "")
    if not password:
        print("the secret LABEL_PASSWORD is not set, so the page shows nothing", flush=True)
        yield _closed
        return
    repository, token = environment.get("LABEL_DATASET"), environment.get("HF_TOKEN")
    if repository and not token:
        raise InputError("LABEL_DATASET is invalid without HF_TOKEN: nothing could be pushed. Add the secret HF_TOKEN.")
    folder = _data_folder(environment)
    tasks = _tasks_file(repository, token)
    file = folder / "feedback.db"
    if not file.exists():
        shutil.copyfile(tasks, file)
    with FeedbackStore(file) as store, FeedbackStore(tasks, create=False) as given:
        store.add_tasks(given.tasks())
        with _pushed(store, folder, repository, token) as write_new:
            secret = hmac.new(password.encode(), store.salt.encode(), hashlib.sha256).hexdigest()
            embedded = _EMBEDDED_IN if environment.get("SPACE_ID") else None
            rules = Rules(secret, port, hosts=None, embedded_in=embedded)
            yield make_app(Desk(store, recorded=write_new), rules, password)


@contextmanager
def _pushed(
    store: FeedbackStore, folder: Path, repository: str | None, token: str | None
) -> Iterator[Callable[[], Any]]:
    """Read back what was pushed before, and push what comes; give the function that notes new events."""
    if repository is None:
        print("LABEL_DATASET is not set: answers are kept on the disk of this Space alone", flush=True)
        yield lambda: None
        return
    from huggingface_hub import CommitScheduler, snapshot_download

    pushed = snapshot_download(repository, repo_type="dataset", allow_patterns=f"{EVENTS_FOLDER}/*.jsonl", token=token)
    rows = [row for file in sorted(Path(pushed).glob(f"{EVENTS_FOLDER}/*.jsonl")) for row in _lines(file)]
    added, skipped = merge_events(store, rows)
    print(
        f"{len(rows)} events were pushed before: {added} are new here, {skipped} are of other tasks or older",
        flush=True,
    )
    since = {row["uuid"] for row in rows}
    log_folder = folder / EVENTS_FOLDER
    scheduler = CommitScheduler(
        repo_id=repository,
        repo_type="dataset",
        folder_path=log_folder,
        path_in_repo=EVENTS_FOLDER,
        every=MINUTES,
        private=True,
        token=token,
        allow_patterns="*.jsonl",
    )
    unpushed = [event.number or 0 for event in store.events() if event.uuid not in since]
    first = min(unpushed) - 1 if unpushed else max((event.number or 0 for event in store.events()), default=0)
    log = EventLog(store, log_folder / f"{int(time.time() * 1000)}.jsonl", scheduler.lock, since=first)
    log.write_new()
    try:
        yield log.write_new
    finally:
        scheduler.trigger().result(timeout=60)  # before stop, after which it pushes nothing
        scheduler.stop()


def _tasks_file(repository: str | None, token: str | None) -> Path:
    beside = Path(TASKS_FILE)
    if beside.is_file():
        return beside
    if repository is None:
        raise InputError(
            f"{TASKS_FILE} is missing. Upload it with the Space, or to the dataset that LABEL_DATASET names."
        )
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repository, TASKS_FILE, repo_type="dataset", token=token))


def _data_folder(environment: Mapping[str, str]) -> Path:
    folder = Path(environment.get("LABEL_DATA", "/data"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    folder = Path("data")
    folder.mkdir(exist_ok=True)
    return folder


def _lines(file: Path) -> list[dict[str, Any]]:
    import json

    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


async def _closed(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer every request by what is missing."""
    if scope["type"] != "http":
        return
    await respond(scope, send, 503, "This Space has no password yet. Add the secret LABEL_PASSWORD in its settings.")


if __name__ == "__main__":
    sys.exit(main())
