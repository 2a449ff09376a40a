"""Checkpoints that a Trainer writes: whole or absent, without pickle, in one form under every launcher."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Trainer
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_callback import ExportableState

from hf_rlhf.checkpoint.computation import Computation
from hf_rlhf.checkpoint.folders import PREFIX, checkpoints, commit, new_scratch, rotate
from hf_rlhf.checkpoint.shards import require_all_shards, save_optimizer_shard
from hf_rlhf.checkpoint.state import random_state, save_state
from hf_rlhf.distributed import by_first_rank, failing_together, gather_in_order, world_size
from hf_rlhf.errors import RunFailed
from hf_rlhf.models.adapters import is_peft_model, saved_names, saves_embeddings
from hf_rlhf.models.sharding import gather_weights, local_shard
from hf_rlhf.records import log_sizes, versions

OPTIMIZER, SCHEDULE, SCALER, RUN = "optimizer", "scheduler", "scaler", "run_state"
TRAINER_STATE_FILE = "trainer_state.json"

logger = logging.getLogger(__name__)


class SavingTrainer(Trainer):
    """A Trainer that writes whole checkpoints.

    Attributes:
        computation: device and dtypes of the run.
        nonfinite_updates: updates of the whole run that were skipped, since their loss or gradients were not finite.
    """

    computation: Computation
    nonfinite_updates: int
    _nonfinite_in_a_row: int
    _saved_at: int | None  # the update of the checkpoint written last

    @property
    def folder(self) -> Path:
        """Folder of the run (`output_dir`)."""
        return Path(str(self.args.output_dir))

    def running_sums(self) -> dict[str, Any]:
        """Return the sums that this rank counts from one log to the next, as plain numbers in dicts and lists."""
        return {
            "loss": self._tr_loss.item(),
            "loss_logged": self._total_loss_scalar,
            "logged_at": self._globalstep_last_logged,
        }

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
            adapter_options = {"save_embedding_layers": saves_embeddings(model)} if is_peft_model(model) else {}
            model.save_pretrained(folder, state_dict=state_dict, is_main_process=args.should_save, **adapter_options)
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
        scratch = by_first_rank(lambda: _make_folder(new_scratch(self.folder, step)))
        try:
            with failing_together(), self._failing_with_advice():
                self._write_parts(scratch, run_state, weights)
            if self._is_zero_3 and not self.args.save_only_model:
                # DeepSpeed's own files, at which its ranks wait for each other
                super()._save_optimizer_and_scheduler(str(scratch))
            with failing_together(), self._failing_with_advice():
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
                logger.warning(
                    "an old checkpoint could not be removed: %s. It uses disk space until you remove it", error
                )

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
    def _failing_with_advice(self) -> Iterator[None]:
        """Raise `RunFailed` with what to do where a checkpoint could not be written."""
        try:
            yield
        except Exception as error:  # safetensors and tokenizers have kinds of their own for a full disk
            if isinstance(error, RunFailed):
                raise
            raise RunFailed(
                f"the checkpoint of update {self.state.global_step} could not be written: {error}"
                f" ({shutil.disk_usage(self.folder).free / 1e9:.3g} GB are free in {self.folder})."
                f" {self._how_to_resume()}."
            ) from error

    def _how_to_resume(self) -> str:
        whole = checkpoints(self.folder)
        if not whole:
            return "There is no checkpoint to resume from"
        if self.args.save_only_model:
            return (
                f"The last checkpoint is {whole[-1]}, which cannot be resumed: it holds the model alone"
                " (save_only_model)"
            )
        return f"The last checkpoint is {whole[-1]}. --resume auto resumes from it"

    def _require_sound_weights(self) -> None:
        """Raise for weights that are not finite, or not the same on every rank; such are not saved."""
        with failing_together():
            total = self._sum_of_finite_weights()
        if not self._shards_weights and len(set(gather_in_order([total]))) > 1:
            raise RunFailed(
                f"the ranks hold different weights after update {self.state.global_step}. They should be equal to the"
                f" bit, so they are not saved. {self._how_to_resume()}. Look for code that changes weights on one rank."
            )

    def _sum_of_finite_weights(self) -> float:
        total = 0.0
        for name, parameter in self.model.named_parameters():  # pyright: ignore[reportOptionalMemberAccess]
            if parameter.requires_grad and not torch.isfinite(local_shard(parameter)).all():
                raise FloatingPointError(
                    f"{name} holds NaN or infinity after update {self.state.global_step}, so the weights are not"
                    f" saved. {self._how_to_resume()}. Set a lower learning_rate."
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


def _make_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
