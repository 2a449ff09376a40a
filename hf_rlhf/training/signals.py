"""SIGTERM and SIGINT as a request that the run follows at its next update."""

import os
import signal
import threading
from types import FrameType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """A context in which the first signal is remembered, and a second one ends the process at once.

    Args:
        active: whether signals are taken at all; a run without checkpoints has nothing to save.

    Attributes:
        received: number of the first signal; 0 before.
    """

    def __init__(self, active: bool = True):
        # Python lets only the main thread take signals.
        self.active = active and threading.current_thread() is threading.main_thread()
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if self.active:
            self._before = {number: signal.signal(number, self._take) for number in STOPPING}
        return self

    def __exit__(self, kind: type | None, *raised: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.received and kind is None:  # it came after the last update, and the run is not what it can stop
            signal.raise_signal(self.received)

    def _take(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.received:
            os.write(2, f"\n{name} again: the run ends now. A checkpoint that it has is whole.\n".encode())
            os._exit(128 + number)
        self.received = number
        os.write(
            2,
            f"\n{name}: the run stops as soon as it can save a checkpoint (PPO: at the end of the iteration). Send it"
            " again to end the run now, and lose what was done since the last checkpoint.\n".encode(),
        )
