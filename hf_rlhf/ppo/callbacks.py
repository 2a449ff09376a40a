"""How PPO's iterations fit into `transformers.Trainer`'s steps, and what a person sees of them."""

from transformers import ProgressCallback, TrainerCallback


class IterationCallback(TrainerCallback):
    """Let logging, evaluation and saving happen only at the end of an iteration.

    In between, half-used completions would belong to no checkpoint. A flag raised inside an iteration waits for its end.
    """

    def __init__(self, updates_per_iteration: int):
        self.updates_per_iteration = updates_per_iteration
        self.pending = dict.fromkeys(("should_log", "should_evaluate", "should_save"), False)

    def on_step_end(self, args, state, control, **kwargs):
        """Hold the flags back, or let them go."""
        at_end = state.global_step % self.updates_per_iteration == 0
        for flag in self.pending:
            self.pending[flag] |= getattr(control, flag)
            setattr(control, flag, self.pending[flag] and at_end)
            if at_end:
                self.pending[flag] = False
        return control


class IterationProgress(ProgressCallback):
    """A progress bar over updates, and one short line an iteration instead of forty numbers."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Print what a person watches: reward, KL, length and time."""
        if not state.is_world_process_zero or self.training_bar is None or logs is None:
            return
        parts = [f"{name} {logs[key]:.{digits}f}" for key, name, digits in _WATCHED if key in logs]
        if "iteration" in logs:
            self.training_bar.write(f"iteration {logs['iteration']:.0f}: " + "  ".join(parts))
        elif "eval_reward" in logs:
            self.training_bar.write("evaluation: " + "  ".join(parts))


_WATCHED = (
    ("reward", "reward", 3),
    ("objective/kl", "kl", 2),
    ("completions/mean_length", "length", 1),
    ("val/explained_variance", "explained variance", 2),
    ("step_time", "seconds", 1),
    ("eval_reward", "reward", 3),
    ("eval_kl", "kl", 2),
)
