"""The reward `moderation`: whether a model of labels flags a completion at its threshold."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hf_rlhf.errors import InputError
from hf_rlhf.models.fingerprints import identity
from hf_rlhf.models.positions import positions
from hf_rlhf.models.reward_model import load_reward_model
from hf_rlhf.rewards.learned import LearnedReward

THRESHOLD_FILE = "threshold.json"


class Moderation:
    """1 for a completion whose reward reaches the threshold of a model of labels, 0 for another.

    A negative weight makes it a penalty: `moderation:model=runs/moderation,weight=-1`.

    Args:
        model: folder or Hub name of a model that `hf-rlhf reward --reward_loss binary` trained.
        threshold: least reward that is flagged; by default that of threshold.json in the folder.
    """

    name = "moderation"
    deterministic = True

    def __init__(self, *, model: str, threshold: float | None = None):
        self.threshold = read_threshold(model) if threshold is None else threshold
        if not math.isfinite(self.threshold):
            raise InputError(f"threshold={threshold} is invalid: it must be a finite number.")
        scorer, tokenizer = load_reward_model(model)
        self.scorer = scorer.model
        self.reward = LearnedReward(scorer, tokenizer, name=self.name, max_length=positions(scorer.model))

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Return 1.0 or 0.0 for each completion, read together with its prompt."""
        return [float(reward >= self.threshold) for reward in self.reward(prompts, completions, **columns)]

    def to(self, device: torch.device | str) -> None:
        """Move the model to a device."""
        self.scorer.to(device)
        self.reward.device = device

    @property
    def cache_key(self) -> str | None:
        """Identity of the reward for `RewardCache`: its weights, tokenizer and threshold."""
        model = self.reward.cache_key
        return None if model is None else identity(self.name, model, self.threshold)


def read_threshold(folder: str) -> float:
    """Return the threshold that a run left in `folder`. Raises `InputError` where there is none."""
    file = Path(folder) / THRESHOLD_FILE
    try:
        return float(json.loads(file.read_text(encoding="utf-8"))["threshold"])
    except FileNotFoundError:
        raise InputError(
            f"model={folder} is invalid for the reward moderation: it has no {THRESHOLD_FILE}. Give the folder of a run"
            " with --reward_loss binary and an evaluation set, or a threshold."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} is invalid: it holds no threshold ({type(error).__name__}: {error}). Give a threshold, or train"
            " again."
        ) from error
