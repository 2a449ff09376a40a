"""`transformers.Trainer` in iterations: how experience reaches its loop, and what becomes of a run's files.

Nothing here knows how experience is made or what the loss is; `hf_rlhf.ppo.trainer` does.
"""

import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import IterableDataset
from torch import Tensor

from hf_rlhf.checkpoint.lock import FolderLock
from hf_rlhf.checkpoint.resume import NEVER
from hf_rlhf.distributed import failing_together, gather_in_order
from hf_rlhf.errors import InputError
from hf_rlhf.models.policy import PolicyWithValue
from hf_rlhf.ppo.callbacks import IterationCallback, in_words
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.experience import ExperienceLoader, MicroBatch
from hf_rlhf.ppo.guard import drop_gradients
from hf_rlhf.ppo.iteration_log import IterationLog
from hf_rlhf.records import (
    SAMPLES_FILE,
    append_json_line,
    changed_settings,
    held_by_another_run,
    in_the_way,
    sample_rows,
)
from hf_rlhf.training.durable import DurableTrainer
from hf_rlhf.types import Trajectory

STATE_FILE = "ppo_state.json"
_BEHIND = {
    "rollout_batch_size": ("per_device_train_batch_size", "gradient_accumulation_steps", "num_mini_batches"),
    "updates_per_iteration": ("num_ppo_epochs", "num_mini_batches"),
    "prompts": ("dataset_name", "dataset_config", "dataset_train_split", "max_train_samples", "skip_bad",
                "overlong_prompts", "max_prompt_length", "chat_template_kwargs"),
}  # fmt: skip
"""Flags from which others follow."""


class OwnLoop(NamedTuple):
    """Local variables of `Trainer.train`, kept for a loop that the user owns."""

    model: Any  # as accelerate wrapped it
    start_time: float
    num_samples: float  # completions of the whole run


class IterationTrainer(DurableTrainer):
    """A Trainer whose batches are made one iteration at a time, by the policy as the last update left it."""

    args: PPOConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    policy: PolicyWithValue
    iteration_log: IterationLog
    prompt_set: Any
    processing_class: Any
    settings: tuple[Any, ...] = ()  # what config.yaml holds; a recipe knows more than the trainer's arguments
    loss_is_scaled_for_ga = True  # losses are divided once by the tokens of the whole minibatch
    _loop: OwnLoop | None = None
    _beginning = False  # an own loop is
    _lock: FolderLock | None = None  # of an own loop, until its last update or the end of the process

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._in_the_way = next(filter(None, gather_in_order([in_the_way(self.folder)])), None)

    # What a subclass brings

    def make_micro_batches(self, iteration: int) -> Iterator[MicroBatch | None]:
        """This rank's micro-batches of an iteration; None for one that is not learned from."""
        raise NotImplementedError

    def algorithm_state(self) -> dict[str, Any]:
        """Return what the algorithm remembers from one iteration to the next, besides weights, as plain JSON."""
        raise NotImplementedError

    def load_algorithm_state(self, state: dict[str, Any]) -> None:
        """Restore what `algorithm_state` returned."""
        raise NotImplementedError

    # Iterations as steps of Trainer

    @property
    def can_stop_here(self) -> bool:
        """True if an iteration has just ended."""
        return self.state.global_step % self.args.updates_per_iteration == 0

    @property
    def iteration(self) -> int:
        """PPO iterations finished."""
        return self.state.global_step // self.args.updates_per_iteration

    @property
    def warming_up(self) -> bool:
        """True if the critic alone learns in this iteration."""
        return self.iteration < self.args.critic_warmup_iterations

    @property
    def _num_prompts(self) -> int | None:
        return None if self.prompt_set is None or isinstance(self.prompt_set, IterableDataset) else len(self.prompt_set)

    def get_train_dataloader(self):
        """Micro-batches of experience; not a DataLoader, which would read a batch ahead of the policy's last update."""
        return ExperienceLoader(
            self.args,
            self.updates_per_pass,
            next_iteration=lambda: self.iteration,
            make_micro_batches=self.make_micro_batches,
        )

    def set_initial_training_values(self, args, dataloader):
        """Turn `total_episodes`, epochs or `max_steps` into the steps of whole iterations; otherwise as in Trainer."""
        if self.args.total_episodes is not None:
            iterations = -(-self.args.total_episodes // self.args.rollout_batch_size)
        elif self._num_prompts is None and args.max_steps <= 0:
            raise InputError("without a train_dataset of known length, give max_steps (updates) or total_episodes")
        else:
            *_, max_steps = super().set_initial_training_values(args, dataloader)
            iterations = -(-max_steps // self.args.updates_per_iteration)
        args = copy.copy(args)
        args.max_steps = iterations * self.args.updates_per_iteration
        return super().set_initial_training_values(args, dataloader)

    @property
    def updates_per_pass(self) -> int | None:
        """Optimizer updates of one pass over the prompts; None when their number is unknown."""
        if self._num_prompts is None:
            return None
        return -(-self._num_prompts // self.args.rollout_batch_size) * self.args.updates_per_iteration

    def _run_epoch(self, *, num_update_steps_per_epoch, resume_from_checkpoint, **kwargs):
        """Like `Trainer._run_epoch`, but a resumed run does only the remaining updates of the pass it stopped in."""
        done = 0 if resume_from_checkpoint is None else self.state.global_step % num_update_steps_per_epoch
        return super()._run_epoch(
            num_update_steps_per_epoch=num_update_steps_per_epoch - done,
            resume_from_checkpoint=resume_from_checkpoint,
            **kwargs,
        )

    def add_callback(self, callback) -> None:
        """Like `Trainer.add_callback`, but the callback that delays saves and logs still decides last.

        It delays them to the end of an iteration.
        """
        super().add_callback(callback)
        callbacks = self.callback_handler.callbacks
        callbacks.sort(key=lambda each: isinstance(each, IterationCallback))

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """Like `Trainer.training_step`, but a micro-batch that is not learned from gives no gradient.

        The optimizer skips parameters without a gradient. A gradient of zeros would not do: Adam's momentum moves
        weights all the same.
        """
        batch: MicroBatch | None = inputs["micro_batch"]
        if batch is None:
            return torch.zeros((), device=self.args.device)
        # Any count: without one, transformers before `loss_is_scaled_for_ga` divides the loss by the accumulated
        # micro-batches
        loss = super().training_step(model, inputs, num_items_in_batch=1)
        if self.accelerator.sync_gradients:  # before the policy's and the critic's are clipped together
            if self.warming_up:
                drop_gradients(self.policy.policy_parameters())
            if batch.minibatch_tokens == 0:  # there are texts alone, of which the critic learns nothing
                drop_gradients(self.policy.critic_parameters())
        return loss

    def _prepare_inputs(self, inputs):
        return inputs

    def create_optimizer(self, model=None):
        """Like `Trainer.create_optimizer`, but with a separate learning rate for the critic when one is set."""
        given = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if given or self.args.critic_learning_rate is None:
            return optimizer
        critic = {id(parameter) for parameter in self.policy.critic_parameters()}
        for group in list(optimizer.param_groups):
            rest = [parameter for parameter in group["params"] if id(parameter) not in critic]
            own = [parameter for parameter in group["params"] if id(parameter) in critic]
            group["params"] = rest
            optimizer.add_param_group({**group, "params": own, "lr": self.args.critic_learning_rate})
        return optimizer

    # A loop that the user owns

    def run_updates(self, micro_batches: Iterator[MicroBatch | None]) -> None:
        """One iteration of Trainer's own loop (updates, schedule, callbacks, logs, saves) over `micro_batches`.

        `train()` and this share every line of that loop, so that both give the same weights. For callbacks, an epoch is
        one iteration here. The last of `max_steps` ends the run as it ends `train()`.
        """
        if self._loop is None:
            if self.state.global_step:
                raise InputError("step() after train(): this run is over; make another trainer for a loop of your own")
            self._loop = self._begin_loop()
        elif self.control.should_training_stop:
            raise InputError(
                f"the run ended at update {self.state.global_step} (max_steps={self.state.max_steps}, or a callback's"
                " wish); for a longer one raise max_steps or total_episodes"
            )
        args, loop = self.args, self._loop
        self.control = self.callback_handler.on_epoch_begin(args, self.state, self.control)
        self._run_epoch(
            model=loop.model,
            epoch=self.iteration,
            train_dataloader=({"micro_batch": batch} for batch in micro_batches),
            steps_in_epoch=args.updates_per_iteration * args.gradient_accumulation_steps,
            num_update_steps_per_epoch=args.updates_per_iteration,
            trial=None,
            ignore_keys_for_eval=None,
            start_time=loop.start_time,
            resume_from_checkpoint=None,
            epochs_trained=0,
            steps_trained_in_current_epoch=0,
        )
        if self.control.should_training_stop:
            self._finalize_training(None, loop.num_samples, loop.start_time)
            if self._lock is not None:
                self._lock.release()

    def _begin_loop(self) -> OwnLoop:
        """All that `Trainer.train` does before its first iteration."""
        if self.args.resume_from_checkpoint:
            raise InputError(
                "a loop of your own starts anew: resume_from_checkpoint is for train(), which goes on from its"
                " checkpoints when it has a train_dataset and rewards"
            )
        self._require_fresh_folder()
        with failing_together():
            if self.is_world_process_zero():
                self._lock = FolderLock(self.folder)
        self._beginning = True
        try:
            return super().train()  # pyright: ignore[reportReturnType]
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise
        finally:
            self._beginning = False

    def _inner_training_loop(self, *args, **kwargs):
        """Like `Trainer._inner_training_loop`, but for the user's loop do only the steps before its first iteration."""
        if not self._beginning:
            return super()._inner_training_loop(*args, **kwargs)
        loader: Any = self.get_train_dataloader()
        epochs, updates_per_epoch, _, num_samples, *_, max_steps = self.set_initial_training_values(self.args, loader)
        self._init_training_state(max_steps, updates_per_epoch, epochs, None, None)
        model, _ = self._prepare_for_training(max_steps, loader, None)
        self._initial_num_input_tokens_seen = 0
        self._initial_global_step = 0
        self._tr_loss = torch.tensor(0.0, device=self.args.device)
        self._total_loss_scalar = 0.0
        self._globalstep_last_logged = 0
        model.zero_grad()
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        if self.args.eval_on_start:
            self._evaluate(None, None, skip_scheduler=True)
        return OwnLoop(model, time.time(), num_samples)

    # Runs and their records

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """Like `DurableTrainer.train`, but refuse a run without prompts, and one whose loop is the user's."""
        if self.prompt_set is None:
            raise InputError("train() needs a train_dataset; without one, own the loop with generate() and step()")
        anew = resume_from_checkpoint in (None, False, NEVER)
        if self._loop is not None:
            raise InputError("this trainer's loop is the user's since the first step(); make another one for train()")
        if anew:
            self._require_fresh_folder()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _require_fresh_folder(self) -> None:
        if self._in_the_way or self.state.global_step:
            raise InputError(self._in_the_way or held_by_another_run(self.folder))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log to trackers and metrics.jsonl. At the end of an iteration, everything known about it is added."""
        if "loss" in logs and "learning_rate" in logs:  # Trainer's own, at the end of an iteration
            logs = {**logs, **self.iteration_log.finished(), "lr": logs["learning_rate"]}
        logs.pop("total_flos", None)  # Trainer cannot count them here, and says 0
        super().log(logs, start_time)

    def write_samples(self, trajectories: list[Trajectory], split: str) -> None:
        """Append some of the completions of all ranks, each of which gives its own, to samples.jsonl."""
        limit = self.args.num_logged_samples
        rows = gather_in_order(sample_rows(trajectories, split, limit))[:limit]
        if self.is_world_process_zero():
            self.folder.mkdir(parents=True, exist_ok=True)
            under_way = split == "train"  # and has the number that its row of metrics.jsonl will have
            iteration = self.iteration + under_way
            for row in rows:
                place = {"step": self.state.global_step, "iteration": iteration}
                append_json_line(self.folder / SAMPLES_FILE, {**place, **row})

    # Saving and resuming

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        if self.args.should_save:
            folder = output_dir or self.folder
            self.policy.save_pretrained(folder, state_dict)
            self.processing_class.save_pretrained(folder)  # pyright: ignore

    def saved_names(self) -> set[str]:
        """Return the names of the parameters of the policy, the critic, and a reference that follows the policy."""
        return self.policy.saved_names(reference=self.args.ref_model_sync_iterations is not None)

    def save_parts(self, folder: Path, weights: dict[str, Tensor] | None) -> None:
        """Save the algorithm's state, and a reference that follows the policy."""
        if self.args.ref_model_sync_iterations is not None:
            self.policy.save_reference(folder, weights)
        state = {**self.algorithm_state(), "flags": self._fixed_flags()}
        (folder / STATE_FILE).write_text(json.dumps(state) + "\n", encoding="utf-8")

    def _fixed_flags(self) -> dict[str, Any]:
        """Return what decides an iteration's prompts and draws, and the trained weights. A run cannot change it."""
        return {
            "seed": self.args.seed,
            "rollout_batch_size": self.args.rollout_batch_size,
            "updates_per_iteration": self.args.updates_per_iteration,
            "prompts": self._num_prompts,
            "num_layers_unfrozen": getattr(self.args, "num_layers_unfrozen", None),
        }

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        file = Path(resume_from_checkpoint) / STATE_FILE
        if not file.is_file():
            raise InputError(f"{resume_from_checkpoint}: no {STATE_FILE}; it is not a checkpoint of a PPO run")
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
            for name, now in self._fixed_flags().items():
                if (before := state["flags"].get(name, now)) != now:
                    raise InputError(self._not_the_same_run(resume_from_checkpoint, name, before, now))
            self.policy.load_weights(resume_from_checkpoint)
            self.load_algorithm_state(state)
        except InputError:
            raise
        except (KeyError, ValueError) as error:
            raise InputError(f"{file} is not what this version writes ({error}); start the run anew") from error

    def _not_the_same_run(self, checkpoint: str, name: str, before: Any, now: Any) -> str:
        """The message for a fixed flag that was changed; some follow from others, and those are named."""
        of_the_run = changed_settings(Path(checkpoint).parent, *(self.settings or (self.args,)))
        causes = {flag: values for flag, values in of_the_run.items() if flag in _BEHIND.get(name, ())}
        because = f" ({in_words(causes)})" if causes else ""
        back = " ".join(f"--{flag} {value}" for flag, (value, _) in causes.items()) or f"{name}={before}"
        harm = "train other weights" if name == "num_layers_unfrozen" else "see other prompts"
        return (
            f"{checkpoint} is of a run with {name}={before}, and this one has {now}{because}: it would"
            f" {harm} than that run; go on with {back}, or start a new run in another folder"
        )

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self.policy.load_weights(self.state.best_model_checkpoint)
