"""Early stopping: a run ends once evaluations get no better, and stays ended when it is resumed."""

from typing import Any

from transformers import EarlyStoppingCallback

from hf_rlhf.errors import InputError
from hf_rlhf.progress import say


class EarlyStopping(EarlyStoppingCallback):
    """transformers' `EarlyStoppingCallback`, whose count of evaluations survives a resume.

    A run that stopped early makes no further update when it is resumed with the same patience.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        """Take the count from the checkpoint that the run resumes from."""
        super().on_train_begin(args, state, control, **kwargs)
        saved: Any = (state.stateful_callbacks or {}).get(type(self).__name__, {})
        counter = "early_stopping_patience_counter"
        self.early_stopping_patience_counter = saved.get("attributes", {}).get(counter, 0) if state.global_step else 0
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        """Count evaluations that are not better; stop after `early_stopping_patience` of them."""
        super().on_evaluate(args, state, control, metrics, **kwargs)
        count = self.early_stopping_patience_counter
        if count >= self.early_stopping_patience and state.is_world_process_zero:
            best = "" if state.best_metric is None else f" The best is {state.best_metric:.4g}."
            say(
                f"stopping early after update {state.global_step}: {args.metric_for_best_model} is not better than"
                f" before in {count} evaluations in a row.{best}"
            )


def stopping_callbacks(args: Any) -> list[EarlyStopping]:
    """Return the callback that `early_stopping_patience` asks for, in a list; an empty one without it."""
    patience = args.early_stopping_patience
    return [] if patience is None else [EarlyStopping(patience, args.early_stopping_threshold)]


def settle_early_stopping(args: Any, metric: str) -> None:
    """Fill in what early stopping needs: the best checkpoint kept, by `metric` unless another one is given.

    Raises `InputError` for settings that contradict it.
    """
    patience, threshold = args.early_stopping_patience, args.early_stopping_threshold
    if threshold < 0:
        raise InputError(f"early_stopping_threshold={threshold} is invalid: it must be 0 or above. Omit it for 0.")
    if patience is None:
        if threshold:
            raise InputError(
                f"early_stopping_threshold={threshold} is invalid without early_stopping_patience. Set that too."
            )
        return
    if patience < 1:
        raise InputError(f"early_stopping_patience={patience} is invalid: it must be at least 1 evaluation.")
    evaluates, saves = (str(getattr(each, "value", each)) for each in (args.eval_strategy, args.save_strategy))
    if evaluates == "no":
        raise InputError(
            f"early_stopping_patience={patience} is invalid: nothing is evaluated. Set eval_strategy to epoch or steps."
        )
    if saves not in (evaluates, "best"):
        raise InputError(
            f"early_stopping_patience={patience} is invalid with eval_strategy={evaluates} and save_strategy={saves}:"
            f" the best checkpoint is kept, so each evaluation needs one. Set save_strategy to {evaluates}."
        )
    args.load_best_model_at_end = True
    args.metric_for_best_model = args.metric_for_best_model or f"eval_{metric}"
