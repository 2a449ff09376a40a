"""The work that every trainer is given, and the numbers that each run reports. Imports nothing of any trainer."""

import argparse
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "it",
    "that",
    "was",
    "for",
    "on",
    "are",
    "as",
    "with",
    "his",
    "they",
    "at",
    "be",
    "this",
    "from",
    "have",
    "or",
    "by",
    "one",
    "had",
    "not",
]


@dataclass(frozen=True)
class Work:
    """One PPO workload; completions have exactly `completion_length` tokens, whatever the model says."""

    model: str  # folder of the policy's start, which is also the reference
    reward_model: str  # folder of a reward model of the same size
    output_dir: str
    dtype: str = "bfloat16"
    rollout_batch_size: int = 32
    completion_length: int = 32
    num_ppo_epochs: int = 4
    num_mini_batches: int = 2
    iterations: int = 4  # the first warms up and does not count
    lora: str = (
        '{"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}'  # arguments of the policy's LoraConfig, as JSON
    )

    @classmethod
    def from_command_line(cls) -> "Work":
        """Read the workload from the command line; every field is a flag."""
        parser = argparse.ArgumentParser()
        for name, kind in cls.__annotations__.items():
            default = getattr(cls, name, None)
            parser.add_argument(f"--{name}", type=kind, default=default, required=default is None)
        return cls(**vars(parser.parse_args()))

    def prompts(self, count: int) -> list[str]:
        """Return texts of 16 to 32 tokens, in turn."""
        return [self._prompt(number, 16 + number % 17) for number in range(count)]

    def _prompt(self, number: int, length: int) -> str:
        words = [WORDS[(number * 7 + place * (3 + number % 5)) % len(WORDS)] for place in range(length)]
        return "".join(f" {word}" for word in words)

    @property
    def lora_arguments(self) -> dict[str, Any]:
        """Arguments of the policy's `LoraConfig`."""
        return json.loads(self.lora)


def now() -> float:
    """Return the seconds of the clock, after the GPU, if there is one, has finished all its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes() -> int:
    """Return the most memory this process has held: on its GPU by torch; without a GPU, resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Stopwatch:
    """Seconds of each phase in each iteration; what no phase claims is the update's."""

    def __init__(self) -> None:
        self.iterations: list[dict[str, float]] = []
        self._claimed: dict[str, float] = {}
        self._begun = now()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's seconds for a phase."""
        start = now()
        yield
        self._claimed[name] = self._claimed.get(name, 0.0) + now() - start

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `function` so that its seconds are counted for a phase."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return timed

    def begin(self) -> None:
        """Begin the first iteration now."""
        self._claimed = {}
        self._begun = now()

    def end_iteration(self) -> None:
        """End an iteration and begin the next."""
        total = now() - self._begun
        self.iterations.append({**self._claimed, "update": total - sum(self._claimed.values()), "total": total})
        self.begin()


def report(stopwatch: Stopwatch, **more: Any) -> None:
    """Print the run as one line of JSON, the last of stdout."""
    print(json.dumps({"iterations": stopwatch.iterations[1:], "peak_bytes": peak_bytes(), **more}), flush=True)


def free_folder(work: Work) -> Path:
    """Return the folder of the run, emptied of what an earlier one left."""
    folder = Path(work.output_dir)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
