"""The files of a PPO run: logs and samples, what is saved of the models, and the algorithm's state to resume from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from torch import Tensor

from hf_rlhf.checkpoint.computation import BASE
from hf_rlhf.distributed import failing_together, gather_in_order
from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import base_of
from hf_rlhf.models.policy import PolicyWithValue
from hf_rlhf.ppo.callbacks import in_words
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.estimators import ReturnMean
from hf_rlhf.ppo.experience import Experience, Rollout
from hf_rlhf.ppo.iteration_log import IterationLog
from hf_rlhf.ppo.kl_control import KLControl
from hf_rlhf.ppo.scores import ScoreShaper
from hf_rlhf.ppo.trajectories import remove_trajectories, trajectory_rows, write_trajectories
from hf_rlhf.records import (
    SAMPLES_FILE,
    append_json_line,
    changed_settings,
    held_by_another_run,
    in_the_way,
    sample_row,
)
from hf_rlhf.rewards.contract import Rewards
from hf_rlhf.rewards.sources import separate_dtypes
from hf_rlhf.training.durable import DurableTrainer
from hf_rlhf.types import Score

STATE_FILE = "ppo_state.json"
_SIZES = (
    "rollout_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps", "num_mini_batches"
)  # fmt: skip
_BEFORE = {"num_generations": 1}  # fixed flags that a checkpoint of an earlier version does not name
_BEHIND = {
    "rollout_batch_size": _SIZES,
    "updates_per_iteration": ("num_ppo_epochs", *_SIZES),
    "prompts": ("dataset_name", "datasets", "eval_fraction", "dataset_config", "dataset_train_split",
                "max_train_samples", "skip_bad_rows",
                "overlong_prompts", "max_prompt_length", "chat_template_kwargs"),
}  # fmt: skip
"""Flags from which others follow."""


class RunFiles(DurableTrainer):
    """A durable Trainer that writes and reads the files of a PPO run."""

    args: PPOConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    policy: PolicyWithValue
    rewards: Rewards | None
    kl_control: KLControl
    shaper: ScoreShaper
    iteration_log: IterationLog
    earlier_returns: ReturnMean = ReturnMean()
    prompt_set: Any
    processing_class: Any
    settings: tuple[Any, ...] = ()  # what config.yaml holds; a recipe knows more than the trainer's arguments

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._in_the_way = next(filter(None, gather_in_order([in_the_way(self.folder)])), None)

    # What a subclass brings

    @property
    def iteration(self) -> int:
        """PPO iterations finished."""
        raise NotImplementedError

    @property
    def _num_prompts(self) -> int | None:
        return None if self.prompt_set is None or isinstance(self.prompt_set, IterableDataset) else len(self.prompt_set)

    def _require_fresh_folder(self) -> None:
        if self._in_the_way or self.state.global_step:
            raise InputError(self._in_the_way or held_by_another_run(self.folder))

    # Logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log to trackers and metrics.jsonl. At the end of an iteration, everything known about it is added."""
        if "loss" in logs and "learning_rate" in logs:  # Trainer's own, at the end of an iteration
            logs = {**logs, **self.iteration_log.finished(), "lr": logs["learning_rate"]}
        logs.pop("total_flos", None)  # Trainer cannot count them here, and says 0
        super().log(logs, start_time)

    def write_samples(self, rollout: Rollout, scores: Sequence[Score | None] | None, split: str) -> None:
        """Append some of the completions of all ranks, each of which gives its own, to samples.jsonl.

        An evaluation has no scores.
        """
        limit = self.args.num_logged_samples
        group = self.args.num_generations if split == "train" else 1
        scores = [None] * len(rollout.trajectories) if scores is None else scores
        samples = list(zip(*rollout, scores, strict=True))[:limit]
        rows = gather_in_order([sample_row(*sample, split) for sample in samples], group)[:limit]
        if self.is_world_process_zero():
            self.folder.mkdir(parents=True, exist_ok=True)
            under_way = split == "train"  # and has the number that its row of metrics.jsonl will have
            place = {"step": self.state.global_step, "iteration": self.iteration + under_way}
            for row in rows:
                append_json_line(self.folder / SAMPLES_FILE, {**place, **row})

    def write_rollout(self, rollout: Rollout, scores: Sequence[Score | None], experience: Experience) -> None:
        """Write what an iteration logs of its completions: samples, and where it is their turn, whole trajectories.

        Every rank takes part, and gives its own.
        """
        self.write_samples(rollout, scores, "train")
        every = self.args.log_trajectories
        if every is None or self.iteration % every:
            return
        limit, group = self.args.num_logged_trajectories, self.args.num_generations
        with failing_together():
            rows = trajectory_rows(rollout, scores, experience, self.processing_class, limit)
        rows = gather_in_order(rows, group)[:limit]
        with failing_together():
            if self.is_world_process_zero():
                write_trajectories(self.folder, rows, iteration=self.iteration + 1, step=self.state.global_step)

    # Saving and resuming

    def resume_run_state(self) -> None:
        """Like `DurableTrainer.resume_run_state`, but also remove the trajectories that the run will write again."""
        resumed = self._resumed_from is not None
        super().resume_run_state()
        if resumed and self.is_world_process_zero():
            remove_trajectories(self.folder, after=self.iteration)

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
            "num_generations": self.args.num_generations,
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
                if (before := state["flags"].get(name, _BEFORE.get(name, now))) != now:
                    raise InputError(self._not_the_same_run(resume_from_checkpoint, name, before, now))
            self.policy.load_weights(resume_from_checkpoint)
            self.load_algorithm_state(state)
        except InputError:
            raise
        except (KeyError, ValueError) as error:
            raise InputError(f"{file} is not what this version writes ({error}); start the run anew") from error

    def _not_the_same_run(self, checkpoint: str, name: str, before: Any, now: Any) -> str:
        """Return the message for a fixed flag that was changed; some follow from others, and those are named."""
        changed_flags = changed_settings(Path(checkpoint).parent, *(self.settings or (self.args,)))
        causes = {flag: values for flag, values in changed_flags.items() if flag in _BEHIND.get(name, ())}
        because = f" ({in_words(causes)})" if causes else ""
        back = " ".join(f"--{flag} {value}" for flag, (value, _) in causes.items()) or f"{name}={before}"
        harm = "train other weights" if name == "num_layers_unfrozen" else "see other prompts"
        return (
            f"{checkpoint} is of a run with {name}={before}, and this one has {now}{because}: it would"
            f" {harm} than that run; resume with {back}, or start a new run in another folder"
        )

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self.policy.load_weights(self.state.best_model_checkpoint)

    def dtypes(self) -> dict[str, torch.dtype]:
        """Like `DurableTrainer.dtypes`, with the reward models that have a base of their own."""
        policy: Any = self.model
        found = {BASE: base_of(policy.model).dtype}
        if self.rewards is not None:
            found |= {f"reward model {name}": dtype for name, dtype in separate_dtypes(self.rewards).items()}
        return found

    def algorithm_state(self) -> dict[str, Any]:
        """Return KL coefficient, running moments of the rewards and their parts and of the returns, and counters."""
        return {
            "kl_coef": self.kl_control.coef,
            "tokens_sampled": self.iteration_log.tokens_sampled,
            "score_moments": self.shaper.state_dict(),
            "part_moments": self.shaper.parts_state_dict(),
            "return_total": self.earlier_returns.total,
            "return_count": self.earlier_returns.count,
        }

    def load_algorithm_state(self, state: dict[str, Any]) -> None:
        """Restore what `algorithm_state` returned."""
        if self.args.kl_target is not None:  # without one it is the flag, which may be changed in the middle of a run
            self.kl_control.coef = state["kl_coef"]
        self.iteration_log.tokens_sampled = state["tokens_sampled"]
        self.earlier_returns = ReturnMean(state.get("return_total", 0.0), state.get("return_count", 0.0))
        self.shaper.load_state_dict(state["score_moments"], state.get("part_moments", {}))
