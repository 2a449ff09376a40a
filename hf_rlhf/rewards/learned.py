"""A reward model as a reward function."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_rlhf.data.collate import pad_sequences
from hf_rlhf.errors import InputError
from hf_rlhf.rewards.values import episode
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
        max_length: most tokens a sequence may have, such as the model's positions; None for no limit.
        device: where the model is.
    """

    def __init__(
        self,
        model: Callable[[Tensor, Tensor], Tensor],
        tokenizer,
        *,
        name: str = "reward_model",
        batch_size: int = 32,
        max_length: int | None = None,
        device: torch.device | str = "cpu",
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.batch_size = batch_size
        self.max_length = max_length
        self.device = device

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Any], **_: Any) -> list[float]:
        """One score for each completion; see `hf_rlhf.rewards.contract`. Raises `InputError` when one is too long."""
        ids = [self.tokenize(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        self._require_short_enough(ids, prompts, completions)
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

    def _require_short_enough(
        self, ids: Sequence[Sequence[int]], prompts: Sequence[Prompt], completions: Sequence[Any]
    ) -> None:
        too_long = [b for b in range(len(ids)) if self.max_length is not None and len(ids[b]) > self.max_length]
        if too_long:
            longest = max(too_long, key=lambda b: len(ids[b]))
            raise InputError(
                f"reward model {self.name!r} takes {self.max_length} tokens, but {len(too_long)} of {len(ids)} texts "
                f"have more, up to {len(ids[longest])} by its tokenizer; make max_prompt_length or "
                "max_completion_length smaller, or take a reward model with more positions"
                f"{episode(prompts[longest], completions[longest])}"
            )
