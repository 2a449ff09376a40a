"""`DurableTrainer`: a `transformers.Trainer` whose run may be killed at any moment and resumes to the same bits."""

import logging
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_callback import ExportableState
from transformers.training_args import OptimizerNames

from hf_rlhf.checkpoint.computation import AUTOCAST, BASE, Computation, difference, require_same_dtypes
from hf_rlhf.checkpoint.folders import PREFIX, checkpoints, commit, new_scratch, rotate
from hf_rlhf.checkpoint.launches import require_durable_launch, require_shardable
from hf_rlhf.checkpoint.lock import locked, require_folder_name
from hf_rlhf.checkpoint.resume import resume_point
from hf_rlhf.checkpoint.shards import (
    MODEL_ALONE,
    launch_of,
    load_optimizer_shard,
    require_all_shards,
    save_optimizer_shard,
)
from hf_rlhf.checkpoint.state import load_state, random_state, save_state, set_random_state
from hf_rlhf.distributed import (
    by_first_rank,
    failing_together,
    gather_in_order,
    global_max,
    rank,
    require_ranks,
    world_size,
)
from hf_rlhf.errors import InputError, RunFailed, RunStopped, refusals_of_libraries
from hf_rlhf.models.adapters import base_of, is_peft_model, load_adapter_weights, saved_names, saves_embeddings
from hf_rlhf.models.load import load_full_weights
from hf_rlhf.models.quantized import keep_4bit_layout
from hf_rlhf.models.sharding import gather_weights, gathered_tensor, local_shard, prepare_sharded
from hf_rlhf.progress import plain_lines_of, say
from hf_rlhf.records import METRICS_FILE, append_json_line, cut_logs, log_sizes, versions
from hf_rlhf.training.optimizer import require_optimizer
from hf_rlhf.training.signals import StopSignals

OPTIMIZER, SCHEDULE, SCALER, RUN = "optimizer", "scheduler", "scaler", "run_state"
TRAINER_STATE_FILE = "trainer_state.json"
_NONE_MADE = " None was made, and the weights are those before"
MOST_NONFINITE = 3
"""So many updates in a row whose loss or gradients are not finite end the run."""

logger = logging.getLogger(__name__)


class DurableTrainer(Trainer):
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
        self.add_callback(_GoOn(self))

    @property
    def folder(self) -> Path:
        """Folder of the run (`output_dir`)."""
        return Path(str(self.args.output_dir))

    @property
    def can_stop_here(self) -> bool:
        """True if a run can be resumed from the update done last."""
        return True

    def dtypes(self) -> dict[str, torch.dtype]:
        """Return the dtypes of the models at work by role, the base first; see `Computation`."""
        return {BASE: base_of(cast(Any, self.model)).dtype}

    # Training

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
        """Like `Trainer._run_epoch`, but a run resumed from its last update makes no further updates."""
        if self.state.global_step < self.state.max_steps:
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
        of_scaler = getattr(self.accelerator, "scaler", None) is not None  # then infinite gradients are its own affair
        finite = math.isfinite(loss) and (of_scaler or math.isfinite(size))
        learns = self._labels is None or int(self._labels) > 0 or self.is_deepspeed_enabled  # which has stepped already
        decision = [not finite, self.signals.received, learns]
        refused, signal, learns = global_max(
            torch.tensor(decision, dtype=torch.float32, device=self.args.device)
        ).tolist()
        self._stop_signal = int(signal)
        if not learns:
            self.drop_update()
            logger.warning("no token of update %d has a label; it is not made", self.state.global_step + 1)
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
            logger.warning("%s; it is not made", what)
            return
        raise FloatingPointError(
            f"{what}; that makes {self._nonfinite_in_a_row} in a row."
            f"{' DeepSpeed has made it, and the weights are lost' if self.is_deepspeed_enabled else _NONE_MADE}."
            f" {self._way_on()}. Try a lower learning_rate, or dtype bfloat16 instead of float16"
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
            self._stop_signal, f"stopped by a signal after update {self.state.global_step}. {self._way_on()}"
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

    # Saving

    def running_sums(self) -> dict[str, Any]:
        """Return the sums that this rank counts from one log to the next, as plain numbers in dicts and lists."""
        return {
            "loss": self._tr_loss.item(),
            "loss_logged": self._total_loss_scalar,
            "logged_at": self._globalstep_last_logged,
        }

    def load_running_sums(self, sums: dict[str, Any]) -> None:
        """Restore what `running_sums` returned."""
        self._tr_loss.fill_(sums["loss"])
        self._total_loss_scalar = sums["loss_logged"]
        self._globalstep_last_logged = sums["logged_at"]

    def save_parts(self, folder: Path, weights: dict[str, Tensor] | None) -> None:
        """Write what else a subclass needs in a checkpoint; called where `should_save`.

        `weights` are those that `saved_names` names, gathered, where the model's own are sharded.
        """

    def saved_names(self) -> set[str]:
        """Return the names of the parameters that a checkpoint holds."""
        return saved_names(cast(Any, self.model))

    def _gathered_weights(self) -> dict[str, Tensor] | None:
        """Return what a save writes, on the first rank, where ranks hold shards; None where each has it whole."""
        if self._is_zero_3:
            return cast(Any, self.accelerator.get_state_dict(self.deepspeed))
        return gather_weights(cast(Any, self.model), self.saved_names()) if self.is_fsdp_enabled else None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Like `Trainer.save_model`, but FSDP gathers no more than what is saved, and ZeRO-2 copies nothing."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            super().save_model(output_dir, _internal_call)
            return
        weights = self._gathered_weights()
        with failing_together():
            self._save(output_dir, weights)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        """Like `Trainer._save`, but write only the model and its tokenizer, without the pickle of the arguments."""
        folder, args = str(output_dir or self.folder), self.args
        if args.should_save or getattr(self, "is_distributed_loading_by_transformers", False):
            model: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            of_adapter = {"save_embedding_layers": saves_embeddings(model)} if is_peft_model(model) else {}
            model.save_pretrained(folder, state_dict=state_dict, is_main_process=args.should_save, **of_adapter)
        if args.should_save and self.processing_class is not None:
            self.processing_class.save_pretrained(folder)  # pyright: ignore

    def _save_checkpoint(self, model, trial) -> None:
        """Write a checkpoint that is whole or absent. Every rank takes part and comes to the same end."""
        self.store_flos()
        step = self.state.global_step
        target = self.folder / f"{PREFIX}{step}"
        best = self.state.best_global_step
        if best and (best == step or (self.folder / f"{PREFIX}{best}").is_dir()):
            self.state.best_model_checkpoint = str(self.folder / f"{PREFIX}{best}")
        self._require_sound_weights()
        run_state = self._run_state()
        weights = self._gathered_weights()  # before anything can fail on one rank, which would leave others waiting
        scratch = by_first_rank(lambda: _made(new_scratch(self.folder, step)))
        try:
            with failing_together(), self._explained():
                self._write_parts(scratch, run_state, weights)
            if self._is_zero_3 and not self.args.save_only_model:
                # DeepSpeed's own files, at which its ranks wait for each other
                super()._save_optimizer_and_scheduler(str(scratch))
            with failing_together(), self._explained():
                if self.args.should_save:
                    if self._writes_shards and not self.args.save_only_model:
                        require_all_shards(scratch, OPTIMIZER, world_size())
                    facts = {"versions": versions(), "computation": self.computation.facts()}
                    commit(scratch, target, step=step, world_size=world_size(), **facts)
        except Exception:
            if self.args.should_save:  # by now no rank writes there any more
                shutil.rmtree(scratch, ignore_errors=True)
            raise
        self._saved_at = step
        if self.args.should_save:
            try:
                rotate(self.folder, self.args.save_total_limit, self.state.best_model_checkpoint)
            except OSError as error:
                logger.warning("an old checkpoint could not be removed, and stays: %s", error)

    def _write_parts(self, scratch: Path, run_state: dict[str, Any], weights: dict[str, Tensor] | None) -> None:
        self._save(str(scratch), weights)
        if not (self.args.save_only_model or self._is_zero_3):
            self._save_optimizer_and_scheduler(str(scratch))
        if self.args.should_save:
            self.save_parts(scratch, weights)
            save_state(scratch, RUN, run_state | {"logs": log_sizes(self.folder)})
            self.state.stateful_callbacks = self._callback_states()  # pyright: ignore[reportAttributeAccessIssue]
            self.state.save_to_json(str(scratch / TRAINER_STATE_FILE))

    def _callback_states(self) -> dict[str, Any]:
        """Return the states of the callbacks by the name of their class; a list for a class with several callbacks."""
        states: dict[str, list[Any]] = {}
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                states.setdefault(type(callback).__name__, []).append(callback.state())
        return {name: found[0] if len(found) == 1 else found for name, found in states.items()}

    def _run_state(self) -> dict[str, Any]:
        own = {"random": random_state(), "sums": self.running_sums()}
        return {
            "ranks": gather_in_order([own]),
            "nonfinite_updates": self.nonfinite_updates,
            "nonfinite_in_a_row": self._nonfinite_in_a_row,
        }

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise `RunFailed` with what to do where a checkpoint could not be written."""
        try:
            yield
        except Exception as error:  # safetensors and tokenizers have kinds of their own for a full disk
            if isinstance(error, RunFailed):
                raise
            raise RunFailed(
                f"the checkpoint of update {self.state.global_step} could not be written: {error}"
                f" ({shutil.disk_usage(self.folder).free / 1e9:.3g} GB are free in {self.folder}). {self._way_on()}"
            ) from error

    def _way_on(self) -> str:
        whole = checkpoints(self.folder)
        if not whole:
            return "There is no checkpoint yet"
        if self.args.save_only_model:
            return f"The last checkpoint is {whole[-1]}; it holds the model alone (save_only_model)"
        return f"The last checkpoint is {whole[-1]}; --resume auto goes on from there"

    def _require_sound_weights(self) -> None:
        """Raise for weights that are not finite, or not the same on every rank; such are not saved."""
        with failing_together():
            total = self._sum_of_finite_weights()
        if not self._shards_weights and len(set(gather_in_order([total]))) > 1:
            raise RunFailed(
                f"the ranks hold different weights after update {self.state.global_step}, which should be the same to"
                f" the bit; they are not saved. {self._way_on()}. Look for code that changes weights on one rank alone"
            )

    def _sum_of_finite_weights(self) -> float:
        total = 0.0
        for name, parameter in self.model.named_parameters():  # pyright: ignore[reportOptionalMemberAccess]
            if parameter.requires_grad and not torch.isfinite(local_shard(parameter)).all():
                raise FloatingPointError(
                    f"{name} holds NaN or infinity after update {self.state.global_step}; such weights are not saved."
                    f" {self._way_on()}. Try a lower learning_rate"
                )
            if parameter.requires_grad and not self._shards_weights:
                total += parameter.detach().sum(dtype=torch.float64).item()
        return total

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._writes_shards:
            save_optimizer_shard(Path(output_dir), OPTIMIZER, self._inner_optimizer, self._launch)
        if self.args.should_save:
            if not self._writes_shards:
                save_state(Path(output_dir), OPTIMIZER, self.optimizer.state_dict())  # pyright: ignore
            save_state(Path(output_dir), SCHEDULE, self.lr_scheduler.state_dict())  # pyright: ignore
            scaler = getattr(self.accelerator, "scaler", None)
            if scaler is not None:
                save_state(Path(output_dir), SCALER, scaler.state_dict())

    # Resuming

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        """Like `Trainer._prepare_for_training`, but sharded runs resume from checkpoints of plain files.

        DeepSpeed makes its own copy of what is trained, so a resumed run loads the weights before.
        """
        if not self._writes_shards:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if resume_from_checkpoint is not None and self.is_deepspeed_enabled:
            self._load_from_checkpoint(resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if self.is_fsdp_enabled:
            plugin: Any = self.accelerator.state.fsdp_plugin
            prepare_sharded(cast(Any, self.model), reshard_after_forward=bool(plugin.reshard_after_forward))
            if resume_from_checkpoint is not None:
                self._load_from_checkpoint(resume_from_checkpoint)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        self._load_scaler(resume_from_checkpoint)
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """Like `Trainer._load_from_checkpoint`, but sharded weights are loaded from whole ones."""
        if not self._writes_shards:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        trained: Any = self.model
        if is_peft_model(trained):
            load_adapter_weights(trained, resume_from_checkpoint, trained.active_adapter)
        else:
            load_full_weights(trained, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if not self._writes_shards:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if self._is_zero_3:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = Path(checkpoint)
        written = (folder / f"{OPTIMIZER}.json").is_file(), (folder / f"{OPTIMIZER}-0.json").is_file()
        if written == (self._writes_shards, not self._writes_shards):
            sharding = f"without {self._launch}" if self._writes_shards else f"under {launch_of(folder, OPTIMIZER)}"
            raise InputError(
                f"{checkpoint} is of a run {sharding}, which shards the optimizer's state. Resume with the launcher"
                " settings that the run began with"
            )
        if self._writes_shards:
            load_optimizer_shard(folder, OPTIMIZER, self._inner_optimizer, self._launch)
        elif not written[0]:
            raise InputError(f"{checkpoint} cannot be resumed: {MODEL_ALONE}")
        else:
            cast(Any, self.optimizer).load_state_dict(load_state(folder, OPTIMIZER))
        cast(Any, self.lr_scheduler).load_state_dict(load_state(folder, SCHEDULE))

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if checkpoint is not None and scaler is not None and (Path(checkpoint) / f"{SCALER}.json").is_file():
            scaler.load_state_dict(load_state(Path(checkpoint), SCALER))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            set_random_state(load_state(Path(checkpoint), RUN)["ranks"][rank()]["random"])

    def go_on(self) -> None:
        """Resume counters, logs and random generators from the checkpoint, after all else is loaded.

        Trainer itself sets the generators just before the next update, so it never does after the last one.
        """
        self._begun = True
        if self._resumed_from is None:
            return
        state = load_state(Path(self._resumed_from), RUN)
        self.nonfinite_updates = state["nonfinite_updates"]
        self._nonfinite_in_a_row = state["nonfinite_in_a_row"]
        self.load_running_sums(state["ranks"][rank()]["sums"])
        self.resumed_at = self.state.global_step
        self._load_rng_state(self._resumed_from)
        if self.is_world_process_zero():
            cut_logs(self.folder, state["logs"])
            say(_way(Path(self._resumed_from).name, self.resumed_at, self.state.max_steps))
        self._resumed_from = None

    @property
    def _inner_optimizer(self) -> Any:
        """Torch's optimizer, under DeepSpeed of this rank's part of one flat vector."""
        optimizer: Any = self.optimizer
        return optimizer.optimizer.optimizer if self.is_deepspeed_enabled else optimizer

    @property
    def _writes_shards(self) -> bool:
        """True if each rank writes its shard of the optimizer's state: under FSDP2, and DeepSpeed but for ZeRO-3."""
        return (self.is_deepspeed_enabled or self.is_fsdp_enabled) and not self._is_zero_3

    @property
    def _shards_weights(self) -> bool:
        """True if no rank holds all weights."""
        return self.is_fsdp_enabled or self._is_zero_3

    @property
    def _launch(self) -> str:
        """Accelerate's name of what the run is launched with."""
        return self.accelerator.distributed_type.value

    @property
    def _is_zero_3(self) -> bool:
        """True if DeepSpeed shards the weights too. It then reads and writes them by itself."""
        return self.is_deepspeed_enabled and is_deepspeed_zero3_enabled()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _way(checkpoint: str, done: int, updates: int) -> str:
    if done < updates:
        return f"going on from {checkpoint} (update {done} of {updates})"
    return (
        f"nothing to train: {checkpoint} is {'the last' if done == updates else 'beyond the last'} of"
        f" max_steps={updates}"
    )


def require_durable_settings(args: TrainingArguments) -> None:
    """Raise `InputError` for an unusable folder, and for flags that would undo what `DurableTrainer` promises."""
    require_folder_name(str(args.output_dir))
    rules = {
        "logging_nan_inf_filter": (not args.logging_nan_inf_filter, "false: it logs a NaN loss as 0"),
        "save_on_each_node": (not args.save_on_each_node, "false: all machines save to one folder, which they share"),
        "enable_jit_checkpoint": (
            not getattr(args, "enable_jit_checkpoint", False),
            "false: SIGTERM saves a checkpoint by itself",
        ),
        "hub_strategy": (
            not args.push_to_hub or args.hub_strategy == "end",
            "end: what Trainer pushes during training is not complete, and holds a pickle",
        ),
    }
    for name, (holds, rule) in rules.items():
        if not holds:
            raise InputError(f"{name}={getattr(args, name)} must be {rule}")


class _GoOn(TrainerCallback):
    """Calls `go_on` when Trainer has set its sums to their start."""

    def __init__(self, trainer: DurableTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.go_on()
