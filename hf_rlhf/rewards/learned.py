"""A reward model as a reward function."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hf_rlhf.data.rows import list_rows
from hf_rlhf.data.tokens import (
    ROW_OPTIONS,
    RefusedByTemplate,
    options_by_row,
    require_chat_template,
    row_ids,
    scored_length,
)
from hf_rlhf.errors import InputError
from hf_rlhf.models.fingerprints import identity
from hf_rlhf.ops.padding import lengths_to_mask, pad_sequences
from hf_rlhf.rewards.values import episode
from hf_rlhf.types import Prompt

logger = logging.getLogger(__name__)


class LearnedReward:
    """A reward model as a reward function, with its own tokenizer for the text of prompt and completion.

    The policy's tokens are never passed on: the reward model may have another vocabulary or chat template. A text is
    tokenized exactly as `hf-rlhf reward` tokenizes a training example, the row's `tools` and `chat_template_kwargs`
    included.

    Args:
        model: `(input_ids (B, L), attention_mask (B, L)) -> rewards (B,)`, right-padded.
        tokenizer: the reward model's.
        name: under which the reward is logged.
        batch_size: sequences in one pass.
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

    cached_columns = ROW_OPTIONS

    @cached_property
    def cache_key(self) -> str | None:
        """Identity for `RewardCache`: weights and tokenizer; None for a reward model whose weights cannot be told.

        Those are of a function, and of a base that is trained.
        """
        fingerprint = getattr(self.model, "fingerprint", None)
        digest = None if fingerprint is None else fingerprint(self.tokenizer)
        return None if digest is None else identity("reward model", digest)

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Return one reward for each completion; see `hf_rlhf.rewards.contract`.

        Raises `InputError` when one is too long, and when the chat template refuses one.
        """
        return self.rewards(prompts, completions, columns).tolist()

    def rewards(self, prompts: Sequence[Prompt], completions: Sequence[Any], columns: Mapping[str, Any]) -> Tensor:
        """Return what the model gives each completion: (N,), or (N, k) for a model that gives k rewards."""
        options = _row_options(prompts, columns)
        ids = [self._text_ids(*row) for row in zip(prompts, completions, options, strict=True)]
        self._require_short_enough(ids, prompts, completions)
        found = []
        by_length = sorted(range(len(ids)), key=lambda b: len(ids[b]))
        for start in range(0, len(ids), self.batch_size):
            rows = by_length[start : start + self.batch_size]
            batch = [ids[b] for b in rows]
            input_ids = pad_sequences(batch, self.tokenizer.pad_token_id or 0).to(self.device)
            lengths = torch.tensor(list(map(len, batch)))
            attention_mask = lengths_to_mask(lengths, input_ids.shape[1]).long().to(self.device)
            found.append(self.model(input_ids, attention_mask).float().cpu())
        return torch.cat(found)[torch.tensor(by_length).argsort()] if found else torch.empty(0)

    def tokenize(self, prompt: Prompt, completion: Any, **options: Any) -> list[int]:
        """Return the ids of prompt + completion: messages by the chat template, plain text with one end token.

        `options` are the row's `tools` and `chat_template_kwargs`. Raises RefusedByTemplate.
        """
        return row_ids(prompt + completion, self.tokenizer, continued=False, options=options)

    def require_prompts(
        self,
        prompts: Sequence[Prompt],
        columns: Mapping[str, Sequence[Any]],
        *,
        source: str,
        max_completion_length: int,
        same_tokens: bool,
        lengths: Sequence[int] | None = None,
    ) -> None:
        """Raise `InputError` for prompts that would be too long for the reward model once they are answered.

        Args:
            prompts: one or more, all text or all messages.
            columns: those of `ROW_OPTIONS` that their rows have.
            source: names the set in errors.
            max_completion_length: most tokens of a completion, by the policy's tokenizer.
            same_tokens: whether this tokenizer has the same ones. If not, a completion has at least one token here, and
                what would be an error otherwise is a warning.
            lengths: tokens of each prompt by `scored_length`, where they are known; then nothing is tokenized here.
        """
        named = f"{source}: reward model {self.name!r}"
        lengths = self._count_tokens(prompts, columns, named) if lengths is None else lengths
        if self.max_length is None:
            return
        longest = max(lengths)
        message = (
            f"{named} takes {self.max_length} tokens, and prompt {list(lengths).index(longest)} (they count from 0) has"
            f" {longest} by its tokenizer, to which a completion of up to"
            f" max_completion_length={max_completion_length} is added. Make max_prompt_length or max_completion_length"
            " smaller, or take a reward model with more positions"
        )
        if longest + (max_completion_length if same_tokens else 1) > self.max_length:
            raise InputError(message)
        if longest + max_completion_length > self.max_length:
            logger.warning("%s; a text that is too long ends the run", message)

    def _count_tokens(
        self, prompts: Sequence[Prompt], columns: Mapping[str, Sequence[Any]], named: str
    ) -> Sequence[int]:
        """Return the tokens of each prompt by `scored_length`. Raises `InputError` for those that are refused."""
        if not isinstance(prompts[0], str):
            require_chat_template(self.tokenizer, source=named)
        lengths, refused = [0] * len(prompts), {}
        for row, (prompt, options) in enumerate(zip(prompts, _row_options(prompts, columns), strict=True)):
            try:
                lengths[row] = scored_length(prompt, self.tokenizer, options)
            except RefusedByTemplate as refusal:
                refused[row] = refusal
        if refused:
            row, refusal = next(iter(refused.items()))
            raise InputError(
                f"{named}: {refusal} in {list_rows(list(refused))} (prompts count from 0), such as {prompts[row]}. Mend"
                " these rows, or give the reward model's tokenizer another chat template"
            )
        return lengths

    def _text_ids(self, prompt: Prompt, completion: Any, options: Mapping[str, Any]) -> list[int]:
        try:
            return self.tokenize(prompt, completion, **options)
        except RefusedByTemplate as refusal:
            raise InputError(f"reward model {self.name!r}: {refusal}{episode(prompt, completion)}") from refusal

    def _require_short_enough(
        self, ids: Sequence[Sequence[int]], prompts: Sequence[Prompt], completions: Sequence[Any]
    ) -> None:
        too_long = [b for b in range(len(ids)) if self.max_length is not None and len(ids[b]) > self.max_length]
        if too_long:
            longest = max(too_long, key=lambda b: len(ids[b]))
            raise InputError(
                f"reward model {self.name!r} takes {self.max_length} tokens, but {len(too_long)} of {len(ids)} texts "
                f"have more, up to {len(ids[longest])} by its tokenizer. Make max_prompt_length or "
                "max_completion_length smaller, or take a reward model with more positions"
                f"{episode(prompts[longest], completions[longest])}"
            )


def _row_options(prompts: Sequence[Prompt], columns: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the `ROW_OPTIONS` of each row."""
    given = {name: columns[name] for name in ROW_OPTIONS if columns.get(name) is not None}
    return options_by_row({"prompts": prompts, **given})
