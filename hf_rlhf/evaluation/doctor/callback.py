"""The doctor beside a run: it looks before the first update and after every iteration."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import IterableDataset
from transformers import TrainerCallback

from hf_rlhf.distributed import by_first_rank
from hf_rlhf.evaluation.doctor.diagnosis import diagnose, write_diagnosis
from hf_rlhf.evaluation.doctor.record import Finding, RunRecord
from hf_rlhf.models.adapters import base_of
from hf_rlhf.records import METRICS_FILE, SAMPLES_FILE, evaluation_rows, iteration_rows, read_json_lines_from
from hf_rlhf.rollout.stops import unknown_end_of_turn

if TYPE_CHECKING:
    from hf_rlhf.ppo.trainer import PPOTrainer

logger = logging.getLogger(__name__)
KEPT_SAMPLES = 200  # of the beginning, and of the end
PADDING_ERROR = {torch.float32: 1e-4}  # mean over the tokens, in nats
ROUNDED_PADDING_ERROR = 0.1  # of the narrower dtypes


class Doctor(TrainerCallback):
    """Warns of each symptom once, when it is first seen; doctor.json holds those that are there at the end.

    Args:
        trainer: of the run.
        stop_on: names of findings that end the run.
    """

    def __init__(self, trainer: "PPOTrainer", stop_on: Sequence[str] = ()):
        self.trainer = trainer
        self.stop_on = frozenset(stop_on)
        self.found: dict[str, Finding] = {}  # all that were seen, by name
        self.at_start: list[Finding] = []
        self.rows: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []
        self._first_samples: list[dict[str, Any]] = []
        self._last_samples: list[dict[str, Any]] = []
        self._samples_read = 0  # bytes

    def on_train_begin(self, args, state, control, **kwargs):
        """Read what a resumed run has logged, and look at the model before it is trained."""
        if state.is_world_process_zero and state.global_step and (self._folder / METRICS_FILE).is_file():
            self.rows, self.evaluations = iteration_rows(self._folder), evaluation_rows(self._folder)
        self.at_start = findings_at_start(self.trainer)
        self._warn(self.at_start)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Look at the iteration that ended; every rank takes part."""
        if logs is not None and "eval_reward" in logs:
            self.evaluations.append(dict(logs))
        if logs is None or "iteration" not in logs:
            return control
        self.rows.append(dict(logs))
        if len(self.rows) % (1 + len(self.rows) // 500):  # a long run is read less often, since all of it is read
            return control
        findings = by_first_rank(lambda: diagnose(self._record()))
        self._warn(findings)
        if stopping := sorted(self.stop_on & {finding.name for finding in (*self.at_start, *findings)}):
            if state.is_world_process_zero:
                logger.warning("the run stops after iteration %d: doctor_stop=%s", self.rows[-1]["iteration"], stopping)
            control.should_training_stop = True
        return control

    def on_train_end(self, args, state, control, **kwargs):
        """Write doctor.json."""
        if state.is_world_process_zero and self.rows:
            record = self._record()
            write_diagnosis(self._folder, record, [*self.at_start, *diagnose(record)])

    @property
    def _folder(self) -> Path:
        return self.trainer.folder

    def _record(self) -> RunRecord:
        if (file := self._folder / SAMPLES_FILE).is_file():
            rows, self._samples_read = read_json_lines_from(file, self._samples_read)
            rows = [row for row in rows if row.get("split") == "train"]
            room = KEPT_SAMPLES - len(self._first_samples)
            self._first_samples += rows[:room]
            self._last_samples = (self._last_samples + rows[room:])[-KEPT_SAMPLES:]
        settings: dict[str, Any] = {}
        for flags in self.trainer.settings or (self.trainer.args,):
            settings |= vars(flags)
        return RunRecord(self.rows, settings, [*self._first_samples, *self._last_samples], self.evaluations)

    def _warn(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            if finding.name not in self.found:
                self.found[finding.name] = finding
                if self.trainer.is_world_process_zero():
                    logger.warning("doctor: %s", finding)


def findings_at_start(trainer: "PPOTrainer") -> list[Finding]:
    """Return what is wrong before the first update. Every rank takes part."""
    prompts = trainer.prompt_set
    if prompts is None or isinstance(prompts, IterableDataset) or len(prompts) < 2 or "images" in prompts.column_names:
        return []
    rows = [prompts[0], prompts[1]]
    error = trainer.padding_error(rows)
    found = by_first_rank(lambda: [_padding(trainer, error), _end_of_turn(trainer, rows[0])])
    return [finding for finding in found if finding is not None]


def _padding(trainer: "PPOTrainer", error: float) -> Finding | None:
    limit = PADDING_ERROR.get(base_of(trainer.policy.model).dtype, ROUNDED_PADDING_ERROR)
    if error <= limit:
        return None
    return Finding(
        "padding",
        "The log-probabilities depend on the padding",
        "A completion gets other log-probabilities beside a longer one than alone: a layer of the model mixes rows of a"
        " batch, or does not heed the attention mask.",
        f"a mean difference of {error:.2g} nats a token, where rounding is below {limit:g}",
        "Use another attn_implementation or model. Until then nothing of this run can be trusted.",
        0,
    )


def _end_of_turn(trainer: "PPOTrainer", row: Any) -> Finding | None:
    if isinstance(row["prompt"], str):
        return None
    kwargs: Any = trainer.args.chat_template_kwargs
    end = unknown_end_of_turn(trainer.policy.model, trainer.processing_class, trainer.sampling, row, kwargs)
    if end is None:
        return None
    return Finding(
        "end_of_turn",
        "Completions never stop",
        "Nothing of what the chat template closes an answer with ends a completion.",
        f"the template closes answers with {end.text!r}",
        "Name its last token in stop_token_ids, or the text in stop_strings.",
        0,
    )
