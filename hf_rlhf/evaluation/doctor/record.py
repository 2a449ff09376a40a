"""Record of a run, as the doctor reads it: the metrics of a run's iterations, its settings and its samples."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from hf_rlhf.errors import InputError
from hf_rlhf.records import METRICS_FILE, SAMPLES_FILE, evaluation_rows, iteration_rows, read_json_lines, read_settings

LEAST = 6
"""Iterations before anything is said of a trend."""
LONGEST_WINDOW = 10
DOCTOR_FILE = "doctor.json"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        name: short, for scripts.
        symptom: a heading of docs/troubleshooting.md, which says more.
        cause: a sentence.
        evidence: the numbers that show it.
        change: what to do.
        iteration: the last one that was read.
    """

    name: str
    symptom: str
    cause: str
    evidence: str
    change: str
    iteration: int

    def __str__(self) -> str:
        return f"{self.symptom} ({self.name}). {self.cause} Seen: {self.evidence}. {self.change}"


@dataclass(frozen=True)
class RunRecord:
    """Numbers of a run, oldest first.

    Attributes:
        rows: of metrics.jsonl, one for each iteration.
        settings: the flags of the run; those that are missing are unknown.
        samples: of samples.jsonl, those of training.
        evaluations: of metrics.jsonl, those of evaluations.
    """

    rows: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()
    evaluations: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def read(cls, folder: Path) -> "RunRecord":
        """Read the files of a PPO run. Raises `InputError` where there is no such run."""
        if not (folder / METRICS_FILE).is_file():
            raise InputError(f"{folder}: no {METRICS_FILE}; it is not the folder of a run. Name its output_dir.")
        samples = folder / SAMPLES_FILE
        try:
            rows, evaluations = iteration_rows(folder), evaluation_rows(folder)
            logged = read_json_lines(samples) if samples.is_file() else []
            logged = [row for row in logged if row.get("split") == "train"]
        except (ValueError, AttributeError, TypeError) as error:
            raise InputError(
                f"{folder}: a file is not what a run writes ({error}). Name the folder of a run."
            ) from error
        if not rows:
            raise InputError(f"{folder / METRICS_FILE}: no PPO iteration is logged; the doctor reads runs of PPO alone")
        return cls(rows, read_settings(folder), logged, evaluations)

    @property
    def iteration(self) -> int:
        """The last iteration."""
        return int(self.rows[-1]["iteration"])

    @property
    def learning(self) -> "RunRecord":
        """The record of the iterations in which the policy learned, and not the critic alone."""
        warmup = self.settings.get("critic_warmup_iterations") or 0
        return replace(self, rows=[row for row in self.rows if row["iteration"] > warmup])

    @property
    def of_a_game_alone(self) -> bool:
        """True where an environment pays and no penalty holds the policy back: it may become whatever wins."""
        return self.flag("environment") is not None and not self.flag("kl_coef", 0.05)

    @property
    def shapes_parts(self) -> bool:
        """True where a reward is clipped or normalized by itself, so that the scores have another scale."""
        named = " ".join(map(str, self.flag("reward_funcs", None) or ()))
        normalized = any(str(each).lower() == "true" for each in self.flag("reward_normalize", None) or ())
        return normalized or bool(self.flag("reward_clips")) or "normalize=" in named or "clip=" in named

    def flag(self, name: str, default: Any = None) -> Any:
        """Return the value of a flag."""
        value = self.settings.get(name, default)
        return default if value is None else value

    def numbers(self, name: str) -> list[float]:
        """Return the numbers of a metric in the iterations, or the evaluations, that have one."""
        values = (row.get(name) for row in (self.evaluations if name.startswith("eval_") else self.rows))
        return [float(value) for value in values if value is not None and math.isfinite(value)]

    def window(self, name: str) -> int:
        """Return how many iterations the beginning and the end of a metric are measured on; 0 if there are too few."""
        count = len(self.numbers(name))
        return 0 if count < LEAST else min(LONGEST_WINDOW, max(count // 4, 2))

    def early(self, name: str) -> float | None:
        """Return a metric's mean over the beginning of the run; None before there is a trend."""
        window = self.window(name)
        return fmean(self.numbers(name)[:window]) if window else None

    def late(self, name: str) -> float | None:
        """Return a metric's mean over the last iterations; None before there is a trend."""
        window = self.window(name)
        return fmean(self.numbers(name)[-window:]) if window else None

    def both(self, name: str) -> tuple[float, float] | None:
        """Return a metric at the beginning and over the last iterations."""
        early, late = self.early(name), self.late(name)
        return None if early is None or late is None else (early, late)

    def kl_per_token(self) -> list[float]:
        """Return the KL of a completion over its mean length, by iteration."""
        rows = [row for row in self.rows if row.get("objective/kl") is not None and row.get("completions/mean_length")]
        return [row["objective/kl"] / row["completions/mean_length"] for row in rows]

    def finding(self, name: str, symptom: str, cause: str, evidence: str, change: str) -> Finding:
        """Return a finding of the last iteration."""
        return Finding(name, symptom, cause, evidence, change, self.iteration)
