"""Callbacks that fit PPO's iterations into `transformers.Trainer`'s steps, and report them to the user."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hf_rlhf.progress import say
from hf_rlhf.records import CONFIG_FILE, changed_settings, write_settings


class IterationCallback(TrainerCallback):
    """Let logging, evaluation and saving happen only at the end of an iteration.

    In between, half-used completions would belong to no checkpoint. A flag raised inside an iteration waits for its
    end.

    The epoch that is logged is made from the updates done alone, so that no resume and no loop of the user
    changes it: passes over the prompts, or the share of the run when their number is unknown.
    """

    def __init__(self, updates_per_iteration: int, updates_per_pass: int | None):
        self.updates_per_iteration = updates_per_iteration
        self.updates_per_pass = updates_per_pass
        self.pending = dict.fromkeys(("should_log", "should_evaluate", "should_save"), False)

    def on_step_end(self, args, state, control, **kwargs):
        """Hold the flags back, or let them go."""
        state.epoch = state.global_step / (self.updates_per_pass or state.max_steps)
        at_end = state.global_step % self.updates_per_iteration == 0
        for flag in self.pending:
            self.pending[flag] |= getattr(control, flag)
            setattr(control, flag, self.pending[flag] and at_end)
            if at_end:
                self.pending[flag] = False
        return control


class SettingsCallback(TrainerCallback):
    """Callback that prints an iteration's sizes and what was chosen, when training begins.

    A run that does not resume writes its settings, and one that does says which of them have changed.

    Args:
        facts: those sizes and choices, in words.
        folder: of the run.
        settings: gives the dataclasses whose flags config.yaml is to hold.
    """

    def __init__(self, facts: str, folder: Path, settings: Callable[[], Iterable[Any]]):
        self.facts = facts
        self.folder = folder
        self.settings = settings

    def on_train_begin(self, args, state, control, **kwargs):
        """Print the facts, and write the settings or say which of them changed."""
        if state.is_world_process_zero:
            say(self.facts)
            if state.global_step == 0 or not (self.folder / CONFIG_FILE).exists():
                write_settings(self.folder, *self.settings())
            elif changed := changed_settings(self.folder, *self.settings()):
                say(f"flags that differ from those the run began with: {in_words(changed)}")


def in_words(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Return the result of `changed_settings` in a line."""
    return ", ".join(f"{name} {before} -> {now}" for name, (before, now) in changed.items())


PPO_WATCHED = (
    ("iteration", "iteration", 0),
    ("reward", "reward", 3),
    ("objective/kl", "kl", 2),
    ("completions/mean_length", "length", 1),
    ("val/explained_variance", "explained variance", 2),
    ("step_time", "seconds", 1),
    ("eval_reward", "evaluation: reward", 3),
    ("eval_kl", "kl", 2),
)
