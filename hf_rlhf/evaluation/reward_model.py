"""How often a reward model agrees with people."""

from collections.abc import Callable
from typing import Any, NamedTuple

from hf_rlhf.evaluation.metrics import wilson_interval


class Pairs(NamedTuple):
    """Preferences as a reward function takes them."""

    prompts: list[Any]
    chosen: list[Any]
    rejected: list[Any]

    @classmethod
    def from_dataset(cls, dataset) -> "Pairs":
        """From TRL's preference format; a set without a prompt column has whole texts to compare."""
        prompts = dataset["prompt"] if "prompt" in dataset.column_names else [""] * len(dataset)
        return cls(list(prompts), list(dataset["chosen"]), list(dataset["rejected"]))


def reward_accuracy(reward: Callable[..., list[float]], pairs: Pairs) -> dict[str, float]:
    """Share of pairs whose chosen answer scores higher, ties counting half, with a 95% Wilson interval; mean margin."""
    chosen = reward(prompts=pairs.prompts, completions=pairs.chosen)
    rejected = reward(prompts=pairs.prompts, completions=pairs.rejected)
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    accuracy = sum((margin > 0) + 0.5 * (margin == 0) for margin in margins) / len(margins)
    low, high = wilson_interval(accuracy, len(margins))
    return {
        "eval_rows": float(len(margins)),
        "eval_accuracy": accuracy,
        "eval_accuracy_low": low,
        "eval_accuracy_high": high,
        "eval_margin": sum(margins) / len(margins),
    }
