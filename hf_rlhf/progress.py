"""Progress bars with one short line a log, instead of a dict of forty numbers."""

import logging
import math
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState

from hf_rlhf.distributed import rank

Watched = tuple[tuple[str, str, int], ...]
"""`(key, name to show, digits)`; keys that are not logged are omitted."""


class CompactProgress(ProgressCallback):
    """Trainer's progress bar, with each log as the few numbers that a person watches."""

    def __init__(self, watched: Watched = ()):
        super().__init__()
        self.watched = watched

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Print the watched numbers above the bar."""
        bar = self.training_bar or self.prediction_bar
        numbers = numbers_of(logs, self.watched)
        if state.is_world_process_zero and bar is not None and numbers:
            bar.write(f"update {state.global_step}/{state.max_steps}: {numbers}")


class PlainProgress(TrainerCallback):
    """Lines instead of a bar, for output that is not a terminal: one per log, and one after a long silence.

    Args:
        watched: what a log's line shows.
        cycle: updates after which the work repeats itself; the time that is left counts whole cycles alone.
    """

    def __init__(self, watched: Watched = (), cycle: int = 1):
        self.watched = watched
        self.cycle = cycle
        self.state: TrainerState | None = None  # of the training under way

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the clock."""
        self.begun, self.first, self.state = time.monotonic(), state.global_step, state
        self.ends: float | None = None  # as the whole cycles so far foretell; None before there is one
        self.due = self.begun + FIRST_LINE_SECONDS

    def on_step_end(self, args, state, control, **kwargs):
        """Measure whole cycles."""
        done = state.global_step - self.first
        if done > 0 and done % self.cycle == 0:
            now = time.monotonic()
            self.ends = now + (now - self.begun) / done * (state.max_steps - state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Print the watched numbers, the time that passed and the time that is left."""
        if numbers := numbers_of(logs, self.watched):
            self._say(f": {numbers}")

    def on_train_end(self, args, state, control, **kwargs):
        """Stop printing."""
        self.state = None

    def remind(self) -> None:
        """Print the time that passed and the time that is left, if no line came for `PLAIN_LINE_SECONDS`."""
        if self.state is not None and time.monotonic() >= self.due:
            self._say("")

    def _say(self, numbers: str) -> None:
        state = self.state
        if state is None or not state.is_world_process_zero or not state.max_steps:
            return
        now = time.monotonic()
        self.due = now + PLAIN_LINE_SECONDS
        left = f", about {duration(self.ends - now)} left" if self.ends is not None and self.ends > now else ""
        say(f"update {state.global_step}/{state.max_steps} ({duration(now - self.begun)}{left}){numbers}")


@contextmanager
def plain_lines_of(trainer: Any) -> Iterator[None]:
    """Print the lines of `trainer`'s `PlainProgress`, if it has one, also between two logs while the block runs."""
    lines = [each for each in trainer.callback_handler.callbacks if isinstance(each, PlainProgress)]
    with _each_second(lines[0].remind) if lines else nullcontext():
        yield


@contextmanager
def _each_second(show: Callable[[], None]) -> Iterator[None]:
    """Call `show` once a second from a thread while the block runs."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(1.0):
            show()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def say(text: str) -> None:
    """Print text; a character that the terminal's encoding lacks is written as an escape."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def numbers_of(logs: Mapping[str, float] | None, watched: Watched) -> str:
    """Return the watched numbers of a log as one line.

    A number that could not be computed is `null`, as in metrics.jsonl.
    """
    return "  ".join(
        f"{name} {logs[key]:.{digits}f}" if math.isfinite(logs[key]) else f"{name} null"
        for key, name, digits in watched
        if logs and key in logs
    )


def duration(seconds: float) -> str:
    """Return seconds in the unit that a person would use."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


FIRST_LINE_SECONDS, PLAIN_LINE_SECONDS = 4.0, 8.0
"""Until the first line of progress where there is no terminal, and between two."""


@contextmanager
def progress_of(total: int, description: str) -> Iterator[Callable[[int], None]]:
    """Show how much of `total` is done while the block runs: as a bar on a terminal, else as a line every few seconds.

    Gives the function that adds to what is done. A line says the time alone where `total` is 1; other ranks show
    nothing.
    """
    if rank():
        yield lambda amount: None
        return
    if sys.stdout.isatty():
        from rich.progress import Progress

        with Progress() as bar:
            task = bar.add_task(description, total=total)
            yield lambda amount: bar.update(task, advance=amount)
            bar.update(task, completed=total)
        return
    begun = time.monotonic()
    done, due = 0, begun + FIRST_LINE_SECONDS

    def show() -> None:
        nonlocal due
        now = time.monotonic()
        if now < due:
            return
        due, passed = now + PLAIN_LINE_SECONDS, now - begun
        share = min(done / max(total, 1), 1)
        left = f", about {duration(passed / share - passed)} left" if share > 0.1 else ""  # the prompts come first
        say(
            f"{description}: {share:.0%} ({duration(passed)}{left})"
            if total > 1
            else f"{description}: {duration(passed)}"
        )

    def advance(amount: int) -> None:
        nonlocal done
        done += amount
        show()

    with _each_second(show):
        yield advance


def use_compact_progress(trainer, watched: Watched, cycle: int = 1) -> None:
    """Swap Trainer's progress callback, or the one that prints every dict, for a compact one; see `PlainProgress`."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(CompactProgress(watched) if sys.stderr.isatty() else PlainProgress(watched, cycle))


def quiet_libraries() -> None:
    """Silence other libraries' load reports and deprecation notices, so that the terminal shows our own progress."""
    import datasets
    import transformers

    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module="(transformers|peft|trl|torch).*")
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    # Not the whole of transformers: TrainingArguments takes a verbosity above warning for "no progress bars".
    for name in ("transformers.modeling_utils", "transformers.utils.loading_report", "transformers.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
