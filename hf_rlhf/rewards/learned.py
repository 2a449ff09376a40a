"""A reward model as a reward function."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_rlhf.data.collate import pad_sequences
from hf_rlhf.types import Prompt


class LearnedReward:
    """Scores the text of prompt and completion with a reward model, tokenised by the model's own tokenizer.

    The policy's tokens are never passed on: the reward model may have another vocabulary or chat template. A text is
    tokenised exactly as `trl.RewardTrainer` tokenises a training example.

    Args:
        model: `(input_ids (B, L), attention_mask (B, L)) -> scores (B,)`, right-padded.
        tokenizer: the reward model's.
        name: under which the reward is logged.
        batch_size: sequences scored at once.
        device: where the model is.
    """

    def __init__(
        self,
        model: Callable[[Tensor, Tensor], Tensor],
        tokenizer,
        *,
        name: str = "reward_model",
        batch_size: int = 32,
        device: torch.device | str = "cpu",
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.batch_size = batch_size
        self.device = device

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Any], **_: Any) -> list[float]:
        """One score for each completion; see `hf_rlhf.rewards.contract`."""
        ids = [self.tokenize(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        scores = torch.empty(len(ids))
        by_length = sorted(range(len(ids)), key=lambda b: len(ids[b]))
        for start in range(0, len(ids), self.batch_size):
            rows = by_length[start : start + self.batch_size]
            batch = [ids[b] for b in rows]
            input_ids = pad_sequences(batch, self.tokenizer.pad_token_id or 0).to(self.device)
            attention_mask = pad_sequences([[1] * len(row) for row in batch], 0).to(self.device)
            scores[rows] = self.model(input_ids, attention_mask).float().cpu()
        return scores.tolist()

    def tokenize(self, prompt: Prompt, completion: Any) -> list[int]:
        """Token ids of prompt + completion: by the chat template for messages, with an end token for plain text."""
        if isinstance(prompt, str):
            end = self.tokenizer.eos_token or ""
            text = prompt + completion
            return self.tokenizer(text if text.endswith(end) else text + end)["input_ids"]
        return self.tokenizer.apply_chat_template(prompt + completion, tokenize=True, return_dict=True)["input_ids"]
