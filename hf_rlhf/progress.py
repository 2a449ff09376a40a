"""Progress bars with one short line a log, instead of a dict of forty numbers."""

import logging
import warnings

from transformers import PrinterCallback, ProgressCallback


class CompactProgress(ProgressCallback):
    """Trainer's progress bar; each log is printed as the few numbers a person watches.

    Args:
        watched: `(key, name to show, digits)`; keys that are not logged are left out.
    """

    def __init__(self, watched: tuple[tuple[str, str, int], ...] = ()):
        super().__init__()
        self.watched = watched

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Print the watched numbers above the bar."""
        bar = self.training_bar or self.prediction_bar
        parts = [f"{name} {logs[key]:.{digits}f}" for key, name, digits in self.watched if logs and key in logs]
        if state.is_world_process_zero and bar is not None and parts:
            bar.write(f"update {state.global_step}/{state.max_steps}: " + "  ".join(parts))


def use_compact_progress(trainer, watched: tuple[tuple[str, str, int], ...]) -> None:
    """Swap Trainer's progress callback, or the one that prints every dict, for a compact one."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(CompactProgress(watched))


def quiet_libraries() -> None:
    """Leave the terminal to our own progress: no load reports, no deprecation notices of other libraries."""
    import datasets
    import transformers

    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module="(transformers|peft|trl|torch).*")
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    # Not the whole of transformers: TrainingArguments takes a verbosity above warning for "no progress bars".
    for name in ("transformers.modeling_utils", "transformers.utils.loading_report", "transformers.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
