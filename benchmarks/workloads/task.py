"""The task of `time_to_reward.py` as each trainer's process gets it, and what it leaves.

Imports nothing of any trainer.
"""

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from work import now, peak_bytes

RESULT_FILE = "result.json"
ITERATION = "iteration "
"""Begins the lines that tell how far a run is."""
FIRST_SNAPSHOT = 1 / 40
"""Share of a run's seconds before the first snapshot."""


@dataclass(frozen=True)
class Setting:
    """Settings that the search chooses for a side. The last two fields exist on one side alone."""

    learning_rate: float = 5e-4
    value_learning_rate: float | None = None  # None: that of the policy
    num_ppo_epochs: int = 2
    num_mini_batches: int = 2
    lora_layers: str = "all"
    critic: str = "value_head"  # hf_rlhf: value_head, or adapter, which begins as the reward model
    value_dtype: str | None = None  # TRL: of the value model, which is trained whole; None: that of the policy


@dataclass(frozen=True)
class Task:
    """One run of one side: for `seconds` of training, with about as many `snapshots` of the policy."""

    model: str  # folder of the policy's start, which is also the reference
    tokenizer: str  # folder; its padding token is not its end token
    reward_model: str  # folder: the adapter for hf_rlhf, the same merged for TRL
    prompts: str  # JSON file: a list of texts, in the model's chat template
    output_dir: str
    dtype: str
    seed: int
    seconds: float
    snapshots: int
    rollout_batch_size: int
    max_completion_length: int
    temperature: float
    kl_coef: float
    lora: dict[str, Any]  # arguments of LoraConfig
    setting: Setting = field(default_factory=Setting)
    feedback: dict[str, Any] = field(default_factory=dict)  # what the reward model was made by: another is another task

    @classmethod
    def from_command_line(cls) -> "Task":
        """Read the JSON file that is the only argument."""
        content = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        return cls(**{**content, "setting": Setting(**content["setting"])})

    def texts(self) -> list[str]:
        """Return the training prompts."""
        return json.loads(Path(self.prompts).read_text(encoding="utf-8"))


class TimeIsUp(Exception):
    """The end of the time, for a `train()` that reads no other sign."""


class Recorder:
    """The clock of a run, which stands still while a snapshot is saved, and the list of its snapshots.

    Each snapshot comes a fixed factor of seconds after the one before, so that times of a fast and of a slow side are
    known equally well.
    """

    def __init__(self, task: Task, save: Callable[[Path], Any]):
        self.task = task
        self.save = save
        self.snapshots: list[dict[str, Any]] = []
        self.iterations = 0
        self.failed: str | None = None
        self._begun, self._saving = now(), 0.0
        self._due = FIRST_SNAPSHOT * task.seconds

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return now() - self._begun - self._saving

    @contextmanager
    def training(self) -> Iterator[None]:
        """Start the clock for a block that calls `train()`; an error that ends it is part of the result."""
        self._begun, self._saving = now(), 0.0
        try:
            yield
        except TimeIsUp:
            pass
        except Exception as error:
            traceback.print_exc()
            self.failed = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"

    def end_iteration(self) -> bool:
        """Count an iteration and save the policy where it is due; returns whether the time is up."""
        self.iterations += 1
        seconds = self.seconds
        print(f"{ITERATION}{self.iterations}, {seconds:.0f} of {self.task.seconds:.0f} s", flush=True)
        over = seconds >= self.task.seconds
        if over or seconds >= self._due:
            folder = Path(self.task.output_dir) / "snapshots" / str(self.iterations)
            begun = now()
            self.save(folder)
            self._saving += now() - begun
            self._due = seconds * (1 / FIRST_SNAPSHOT) ** (1 / (self.task.snapshots - 1))
            self.snapshots.append({"iteration": self.iterations, "seconds": seconds, "folder": str(folder)})
        return over

    def write(self, **versions: str) -> None:
        """Write the result of the run, which marks it as complete."""
        content = {
            "task": asdict(self.task),
            "snapshots": self.snapshots,
            "iterations": self.iterations,
            "failed": self.failed,
            "peak_bytes": peak_bytes(),
            "versions": versions,
        }
        file = Path(self.task.output_dir) / RESULT_FILE
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
