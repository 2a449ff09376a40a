"""The reward `classifier`: what a text classifier with several labels says, such as one of toxicity."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hf_rlhf.errors import InputError, did_you_mean
from hf_rlhf.models.fingerprints import identity, model_fingerprint
from hf_rlhf.rewards.encoders import Encoder
from hf_rlhf.rewards.texts import completion_text


class Classifier:
    """The probability, or the logit, that a text classifier gives one of its labels.

    A negative weight makes it a penalty: `classifier:model=...,label=toxic,weight=-1`. The probability is what
    `pipeline("text-classification")` says: by sigmoid where several labels can hold at once and where there is only
    one, else by softmax.

    Args:
        model: folder or Hub name of the classifier.
        label: by its name in the model's config. It may be omitted where there is only one.
        logit: whether the logit is the reward, and not the probability.
        with_prompt: whether the prompt is read in front of the completion; long texts are then cut at their beginning.
    """

    name = "classifier"
    deterministic = True
    required_columns = ()

    def __init__(self, *, model: str, label: str | None = None, logit: bool = False, with_prompt: bool = False):
        from transformers import AutoModelForSequenceClassification

        self.encoder = Encoder(AutoModelForSequenceClassification, model, keep_end=with_prompt)
        self.column = _label_id(self.encoder.model.config, label, model)
        self.logit = logit
        self.with_prompt = with_prompt

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Return the number of the label for each completion."""
        texts = [completion_text(completion) for completion in completions]
        if self.with_prompt:
            texts = [_in_front(prompt) + text for prompt, text in zip(prompts, texts, strict=True)]
        return self.encoder.run(texts, self._read).tolist()

    def to(self, device: torch.device | str) -> None:
        """Move the model to a device."""
        self.encoder.to(device)

    @cached_property
    def cache_key(self) -> str:
        """Identity of the reward for `RewardCache`: its weights, tokenizer and settings."""
        weights = model_fingerprint(self.encoder.model, self.encoder.tokenizer)
        return identity(self.name, weights, self.column, self.logit, self.with_prompt, self.encoder.max_length)

    def _read(self, output: Any, mask: Tensor) -> Tensor:
        config, logits = self.encoder.model.config, output.logits.float()
        if self.logit or config.problem_type == "regression":
            return logits[:, self.column]
        several = config.problem_type == "multi_label_classification" or config.num_labels == 1
        return (logits.sigmoid() if several else logits.softmax(dim=1))[:, self.column]


def _label_id(config: Any, label: str | None, model: str) -> int:
    names = {str(name): int(number) for number, name in config.id2label.items()}
    if label is None and len(names) == 1:
        return 0
    matches = [number for name, number in names.items() if label is not None and name.lower() == label.lower()]
    if label in names or len(matches) == 1:
        return names.get(str(label), matches[0])
    said = "label is missing" if label is None else f"label={label} is not among its labels"
    raise InputError(f"{said}. {did_you_mean(str(label), names)}{model} has {', '.join(names)}")


def _in_front(prompt: Any) -> str:
    """Return the text of a prompt: text as it is, messages below each other."""
    return prompt if isinstance(prompt, str) else completion_text(prompt) + "\n"
