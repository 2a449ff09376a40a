"""`DurableTrainer`: a `transformers.Trainer` whose run may be killed at any moment and resumes to the same bits."""

import logging
import math
from typing import Any, cast

import torch
from torch import Tensor
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from hf_rlhf.checkpoint.computation import AUTOCAST, BASE, Computation, difference, require_same_dtypes
from hf_rlhf.checkpoint.launches import require_durable_launch, require_shardable
from hf_rlhf.checkpoint.lock import locked, require_folder_name
from hf_rlhf.checkpoint.resume import resume_point
from hf_rlhf.distributed import gather_in_order, global_max, require_ranks, world_size
from hf_rlhf.errors import InputError, RunStopped, refusals_of_libraries
from hf_rlhf.models.adapters import base_of
from hf_rlhf.models.quantized import keep_4bit_layout
from hf_rlhf.models.sharding import gathered_tensor
from hf_rlhf.progress import plain_lines_of
from hf_rlhf.records import METRICS_FILE, append_json_line
from hf_rlhf.training.optimizer import require_optimizer
from hf_rlhf.training.resuming import ResumeOnBegin, ResumingTrainer
from hf_rlhf.training.signals import StopSignals

MOST_NONFINITE = 3
"""So many updates in a row whose loss or gradients are not finite end the run."""

logger = logging.getLogger(__name__)


class DurableTrainer(ResumingTrainer):
    """The base of every trainer here: checkpoints, signals, skipped updates and records, for any loss.

    - Checkpoints are whole or absent, hold no pickle, and are verified before a run resumes from one.
    - SIGTERM and SIGINT save a checkpoint and end the run on all ranks after the same update (`RunStopped`).
    - An update whose loss or gradients are not finite on any rank is made on none; three in a row end the run. One
      without any label to learn from is not made either, since the optimizer's momentum would move the weights.
    - metrics.jsonl has a row for each log, and after a resume the rows that a run without a break would have.
    """

    def __init__(self, *args, **kwargs):
        given = kwargs["args"] if "args" in kwargs else args[1] if len(args) > 1 else None
        if given is not None:
            require_ranks(given)
            require_durable_settings(given)
        super().__init__(*args, **kwargs)
        require_durable_launch(self.accelerator, cast(Any, self.model))
        keep_4bit_layout(cast(Any, self.model))
        if self.optimizer is None and not self.is_deepspeed_enabled:
            require_optimizer(self.args, cast(Any, self.model))
        # Now, since DeepSpeed may change the dtype of weights when training begins
        self.computation = Computation.here(
            self.args.device, {**self.dtypes(), AUTOCAST: self.accelerator.mixed_precision}
        )
        require_same_dtypes(gather_in_order([self.computation.dtypes]))
        self.signals = StopSignals(active=False)
        self.nonfinite_updates = 0  # of the whole run
        self._nonfinite_in_a_row = 0
        self._update_loss: Tensor | float = 0.0  # of this rank's micro-batches since the last update
        self._labels: Tensor | int | None = None  # that count in that update; None where there are no labels
        self._stop_signal = 0  # that all ranks know of
        self._stopped = False  # and have saved a checkpoint for
        self._saved_at: int | None = None  # the update of the checkpoint written last
        self._resumed_from: str | None = None
        self._begun = False  # the first update is under way
        self.resumed_at = 0  # the update after which this process took up the run
        self.add_callback(ResumeOnBegin(self))

    @property
    def can_stop_here(self) -> bool:
        """True if a run can be resumed from the update done last."""
        return True

    def dtypes(self) -> dict[str, torch.dtype]:
        """Return the dtypes of the models at work by role, the base first; see `Computation`."""
        return {BASE: base_of(cast(Any, self.model)).dtype}

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """Like `Trainer.train`, but `resume_from_checkpoint` is a path, `auto`, `last` or `never`, see `resume_point`.

        Raises `RunStopped` after a signal, and `RunFailed` when a checkpoint cannot be written.
        """
        with locked(self.folder), StopSignals(active=self.args.save_strategy != "no") as self.signals:
            self._stop_signal, self._stopped = 0, False
            self._resumed_from = resume_point(self.folder, resume_from_checkpoint)
            words = None if self._resumed_from is None else difference(self._resumed_from, self.computation)
            if words is not None and self.is_world_process_zero():
                logger.warning("%s", words)
            self._begun = False
            with refusals_of_libraries(self.args, until=lambda: self._begun), plain_lines_of(self):
                return super().train(self._resumed_from, *args, **kwargs)

    def _run_epoch(self, **kwargs):
        """Like `Trainer._run_epoch`, but a run resumed from its last update makes no further updates.

        That is the last one of `max_steps`, or the one after which it stopped early.
        """
        if self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            super()._run_epoch(**kwargs)
        else:
            self.control.should_training_stop = True

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """Like `Trainer.training_step`, but remember the loss and the number of labels until the update."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._update_loss, self._labels = self._update_loss + loss, num_items_in_batch
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        """Like `Trainer._get_grad_norm`, but all ranks decide on the update and on stopping.

        The last check before an update: whether it is made, and whether a signal has come.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        loss, self._update_loss = float(self._update_loss), 0.0
        size = 0.0 if norm is None else float(gathered_tensor(norm))
        has_scaler = getattr(self.accelerator, "scaler", None) is not None  # then infinite gradients are its own affair
        finite = math.isfinite(loss) and (has_scaler or math.isfinite(size))
        learns = self._labels is None or int(self._labels) > 0 or self.is_deepspeed_enabled  # which has stepped already
        decision = [not finite, self.signals.received, learns]
        refused, signal, learns = global_max(
            torch.tensor(decision, dtype=torch.float32, device=self.args.device)
        ).tolist()
        self._stop_signal = int(signal)
        if not learns:
            self.drop_update()
            logger.warning("update %d is skipped: none of its tokens has a label", self.state.global_step + 1)
        elif refused:
            self._refuse_update(loss, size, finite)
        else:
            self._nonfinite_in_a_row = 0
        return size if norm is not None else None

    def _refuse_update(self, loss: float, norm: float, finite: bool) -> None:
        self.nonfinite_updates += 1
        self._nonfinite_in_a_row += 1
        self.drop_update()
        ranks = [number for number, here in enumerate(gather_in_order([finite])) if not here]
        update = self.state.global_step + 1
        where = f", on ranks {ranks}" if world_size() > 1 else ""
        numbers = f"loss {loss:g}, gradient norm {norm:g}{where}"
        what = f"the loss or the gradients of update {update} are NaN or infinite ({numbers})"
        if self._nonfinite_in_a_row < MOST_NONFINITE and not self.is_deepspeed_enabled:
            logger.warning("%s. The update is skipped, and the run continues with the weights before it", what)
            return
        lost = "DeepSpeed has already applied it, so the weights are lost"
        kept = "All of them were skipped, and the weights are unchanged"
        raise FloatingPointError(
            f"{what}: the last of {self._nonfinite_in_a_row} in a row. {lost if self.is_deepspeed_enabled else kept}."
            f" {self._how_to_resume()}. Set a lower learning_rate, or dtype=bfloat16 instead of float16."
        )

    def create_optimizer(self, model=None):
        """Like `Trainer.create_optimizer`, but raise `InputError` for an optimizer that FSDP2 cannot shard."""
        optimizer = super().create_optimizer(model)
        if self.is_fsdp_enabled:
            require_shardable(optimizer, OptimizerNames(self.args.optim).value)
        return optimizer

    def drop_update(self) -> None:
        """Skip this update: leave the optimizer nothing to do."""
        for parameter in self.model.parameters():  # pyright: ignore[reportOptionalMemberAccess]
            parameter.grad = None

    def _evaluate(self, trial, ignore_keys_for_eval, skip_scheduler=False):
        """Like `Trainer._evaluate`, but a resumed run does not repeat the evaluation at the start (`eval_on_start`)."""
        if skip_scheduler and self.resumed_at:
            return {}
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        """Like `Trainer._maybe_log_save_evaluate`, but end the run after a signal.

        It saves at the first update that a run can be resumed from, and then does nothing more.
        """
        if self._stopped:
            return
        stops = bool(self._stop_signal) and self.can_stop_here
        if stops:
            self.control.should_training_stop = self.control.should_save = True
        saved_before = self._saved_at
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if stops and self._saved_at == saved_before:  # `save_strategy=best` takes the wish back
            self._save_checkpoint(cast(Any, self.model), trial=None)
        self._stopped = stops

    def _finalize_training(self, *args, **kwargs):
        """Like `Trainer._finalize_training`, but a run that a signal ended logs no end: it raises `RunStopped`."""
        if not self._stopped:
            return super()._finalize_training(*args, **kwargs)
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        raise RunStopped(
            self._stop_signal, f"stopped by a signal after update {self.state.global_step}. {self._how_to_resume()}"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log to trackers and metrics.jsonl."""
        if "loss" in logs:
            logs["nonfinite_updates"] = self.nonfinite_updates
            self._tr_loss.zero_()  # Trainer subtracts it from itself, which leaves a NaN one NaN for ever
        if "train_loss" in logs:  # over all updates of the run, and not only those since it was resumed
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)
        if self.is_world_process_zero():
            self.folder.mkdir(parents=True, exist_ok=True)
            append_json_line(self.folder / METRICS_FILE, {"step": self.state.global_step, **logs})

    def create_model_card(self, *args, **kwargs) -> None:
        """Do nothing: the recipes write the card, and Trainer's draft would replace it."""


def require_durable_settings(args: TrainingArguments) -> None:
    """Raise `InputError` for an unusable folder, and for flags that would undo what `DurableTrainer` promises."""
    require_folder_name(str(args.output_dir))
    rules = {
        "logging_nan_inf_filter": (
            not args.logging_nan_inf_filter,
            "with true, a NaN loss is logged as 0. Set it to false",
        ),
        "save_on_each_node": (not args.save_on_each_node, "all machines save to one shared folder. Set it to false"),
        "enable_jit_checkpoint": (
            not getattr(args, "enable_jit_checkpoint", False),
            "SIGTERM already saves a checkpoint. Set it to false",
        ),
        "hub_strategy": (
            not args.push_to_hub or args.hub_strategy == "end",
            "what Trainer pushes during training is incomplete and holds a pickle. Set it to end",
        ),
    }
    for name, (holds, reason) in rules.items():
        if not holds:
            raise InputError(f"{name}={getattr(args, name)} is invalid: {reason}.")
