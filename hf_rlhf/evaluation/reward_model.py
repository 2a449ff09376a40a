"""Agreement of a reward model with people."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from hf_rlhf.data.rows import read_columns
from hf_rlhf.data.tokens import NOTHING, ROW_OPTIONS, with_row_options
from hf_rlhf.evaluation.metrics import wilson_interval
from hf_rlhf.ops.preference import preference_accuracy
from hf_rlhf.rewards.calls import accepted


class Pairs(NamedTuple):
    """Preferences as a reward function takes them."""

    prompts: list[Any]
    chosen: list[Any]
    rejected: list[Any]
    options: Mapping[str, list[Any]] = NOTHING  # columns `tools` and `chat_template_kwargs`, where the set has them

    @classmethod
    def from_dataset(cls, dataset) -> "Pairs":
        """Read TRL's preference format; a set without a prompt column has whole texts or dialogues to compare."""
        names = [name for name in ("prompt", "chosen", "rejected") if name in dataset.column_names]
        columns = read_columns(dataset, with_row_options(names, dataset.column_names))
        nothing = [] if isinstance(columns["chosen"][0], list) else ""
        prompts = columns.get("prompt") or [nothing] * len(dataset)
        options = {name: columns[name] for name in ROW_OPTIONS if name in columns}
        return cls(prompts, columns["chosen"], columns["rejected"], options)

    def rewards(self, reward: Callable[..., list[float]], answers: list[Any]) -> list[float]:
        """Return the rewards of `chosen` or `rejected` by a function of TRL's contract."""
        return reward(**accepted(reward, {"prompts": self.prompts, "completions": answers, **self.options}))


def reward_accuracy(reward: Callable[..., list[float]], pairs: Pairs) -> dict[str, float]:
    """Return the share of pairs whose chosen answer gets the higher reward, and the mean margin.

    A tie counts half. The share has a 95% Wilson interval.
    """
    chosen, rejected = pairs.rewards(reward, pairs.chosen), pairs.rewards(reward, pairs.rejected)
    accuracy = preference_accuracy(
        *(torch.tensor(rewards, dtype=torch.float64) for rewards in (chosen, rejected))
    ).item()
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    low, high = wilson_interval(accuracy, len(margins))
    return {
        "eval_rows": float(len(margins)),
        "eval_accuracy": accuracy,
        "eval_accuracy_low": low,
        "eval_accuracy_high": high,
        "eval_margin": sum(margins) / len(margins),
    }
