"""Runs that a Trainer resumes from a whole checkpoint, to the same bits as a run without a break."""

from pathlib import Path
from typing import Any, cast

from transformers import TrainerCallback

from hf_rlhf.checkpoint.shards import MODEL_ALONE, launch_of, load_optimizer_shard
from hf_rlhf.checkpoint.state import load_state, set_random_state
from hf_rlhf.distributed import rank
from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import is_peft_model, load_adapter_weights
from hf_rlhf.models.load import load_full_weights
from hf_rlhf.models.sharding import prepare_sharded
from hf_rlhf.progress import say
from hf_rlhf.records import cut_logs
from hf_rlhf.training.saving import OPTIMIZER, RUN, SCALER, SCHEDULE, SavingTrainer


class ResumingTrainer(SavingTrainer):
    """A Trainer that resumes from the checkpoints that `SavingTrainer` writes.

    Attributes:
        resumed_at: the update after which this process resumed the run; 0 for a new run.
    """

    resumed_at: int
    _resumed_from: str | None  # the checkpoint, until its counters are loaded
    _begun: bool  # the first update is under way

    def load_running_sums(self, sums: dict[str, Any]) -> None:
        """Restore what `running_sums` returned."""
        self._tr_loss.fill_(sums["loss"])
        self._total_loss_scalar = sums["loss_logged"]
        self._globalstep_last_logged = sums["logged_at"]

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
                f"resume={checkpoint} is invalid: it is of a run {sharding}, which shards the optimizer's state. Resume"
                " with the launcher settings of that run."
            )
        if self._writes_shards:
            load_optimizer_shard(folder, OPTIMIZER, self._inner_optimizer, self._launch)
        elif not written[0]:
            raise InputError(f"resume={checkpoint} is invalid: {MODEL_ALONE}.")
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

    def resume_run_state(self) -> None:
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
            say(_resume_line(Path(self._resumed_from).name, self.resumed_at, self.state.max_steps))
        self._resumed_from = None


def _resume_line(checkpoint: str, done: int, updates: int) -> str:
    if done < updates:
        return f"resuming from {checkpoint} (update {done} of {updates})"
    return (
        f"nothing to train: {checkpoint} is {'the last' if done == updates else 'beyond the last'} of"
        f" max_steps={updates}"
    )


class ResumeOnBegin(TrainerCallback):
    """A callback for `resume_run_state`, after Trainer has set its sums to 0."""

    def __init__(self, trainer: ResumingTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        """Resume the counters, logs and random generators."""
        self.trainer.resume_run_state()
