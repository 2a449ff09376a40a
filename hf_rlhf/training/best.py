"""The choice of the best checkpoint: the metric of an evaluation that says so, and its better direction."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from hf_rlhf.errors import InputError

Directions = Mapping[str, bool | None]
"""Metrics of an evaluation, without `eval_`: True where more is better, None where that depends.

The first is the default.
"""

_SCHEDULES = ("reduce_lr_on_plateau", "greedy")  # which follow the metric


def settle_best_metric(args: Any, directions: Directions) -> None:
    """Fill in `metric_for_best_model` and `greater_is_better` before `TrainingArguments` does, which assumes a loss.

    Raises `InputError` for a direction that has to be given, and for a best checkpoint without evaluations, or that
    need not be there.
    """
    best_only = _value(args.save_strategy) == "best"
    follows = args.load_best_model_at_end or best_only or _value(args.lr_scheduler_type) in _SCHEDULES
    if not follows and args.metric_for_best_model is None:
        return
    if follows and _value(args.eval_strategy) == "no":
        flag = "load_best_model_at_end=True" if args.load_best_model_at_end else (
            "save_strategy=best" if best_only else f"lr_scheduler_type={_value(args.lr_scheduler_type)}"
        )  # fmt: skip
        raise InputError(
            f"{flag} is invalid: nothing is evaluated, so no checkpoint can be the best. Set eval_strategy to steps or"
            " epoch"
        )
    evaluates, saves = args.eval_steps or args.logging_steps, args.save_steps
    both = {_value(args.eval_strategy), _value(args.save_strategy)}
    if args.load_best_model_at_end and both == {"steps"} and evaluates != saves:  # transformers takes any multiple
        raise InputError(
            f"save_steps={saves:g} is invalid with eval_steps={evaluates:g} where the best checkpoint is kept: the best"
            f" evaluation may have none. Set save_steps to {evaluates:g}."
        )
    if args.metric_for_best_model is None:
        args.metric_for_best_model = f"eval_{next(iter(directions))}"
    if args.greater_is_better is not None:
        return
    name = re.sub(r"rewards/.+/mean", "rewards/<name>/mean", args.metric_for_best_model.removeprefix("eval_"))
    matches = (each for each in directions if name == each or name.endswith(f"_{each}"))  # eval_<set>_<metric>
    known = next(matches, None)
    args.greater_is_better = not name.endswith("loss") if known is None else directions[known]
    if args.greater_is_better is None:
        raise InputError(
            f"metric_for_best_model={args.metric_for_best_model} is invalid without greater_is_better: a higher value"
            " can"
            " be better or worse. Set greater_is_better to true or false"
        )


def require_best_metric(args: Any, names: Iterable[str]) -> None:
    """Raise `InputError` when an evaluation does not measure `metric_for_best_model`; `names` are what it measures."""
    metric = args.metric_for_best_model
    known = [f"eval_{name}" for name in names]
    if metric is None or metric in known or f"eval_{metric}" in known:
        return
    close = difflib.get_close_matches(f"eval_{metric.removeprefix('eval_')}", known, n=1, cutoff=0.75)
    meant = f"Did you mean {close[0]}? " if close else ""
    raise InputError(
        f"metric_for_best_model={metric} is invalid: the evaluation does not measure it. {meant}It measures"
        f" {', '.join(known)}"
    )


def _value(setting: Any) -> str:
    return str(getattr(setting, "value", setting))
