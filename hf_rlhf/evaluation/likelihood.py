"""Exact log-probabilities of tokens by a model, as PPO computes them, and what follows: KL, surprise, perplexity."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hf_rlhf.models.adapters import base_of, compute_in_base_dtype, keep_modes
from hf_rlhf.models.backbone import counted_ids, counted_states, logits_head
from hf_rlhf.models.positions import positions
from hf_rlhf.ops.kl import k1
from hf_rlhf.ops.logprobs import token_logprobs
from hf_rlhf.types import Model, Sequences

KL_ESTIMATOR = "k1"
WINDOW = 1024
"""Tokens of a text that are read at once, where the model has no fewer positions."""


@torch.no_grad()
def completion_logprobs(
    model: Model,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    batch_size: int = 16,
) -> list[list[float]]:
    """Return the log-probability of each token of each completion.

    Args:
        model: with or without a PEFT wrapper, whose active adapter counts.
        prompts: ids of `B` prompts.
        completions: ids of a completion of each, which may be empty.
        temperature: divides the logits; above 0.
        batch_size: completions in one forward pass.
    """
    device = next(model.parameters()).device
    found: list[list[float]] = [[] for _ in completions]
    rows = sorted((b for b, ids in enumerate(completions) if ids), key=lambda b: len(prompts[b]) + len(completions[b]))
    vocab_size = base_of(model).config.get_text_config().vocab_size
    with keep_modes(model), compute_in_base_dtype(model):
        model.eval()
        head = logits_head(base_of(model))
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            sequences = Sequences.from_ids([prompts[b] for b in batch], [completions[b] for b in batch]).to(device)
            states = counted_states(base_of(model), sequences)
            scored = token_logprobs(
                states, counted_ids(sequences), head, temperature=temperature, vocab_size=vocab_size
            )
            parts = scored.logprobs.cpu().split([len(completions[b]) for b in batch])
            for b, part in zip(batch, parts, strict=True):
                found[b] = part.tolist()
    return found


def completion_kl(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> list[float]:
    """Return the KL of each completion to the reference in nats: `k1` summed over its tokens.

    Its mean over completions that the policy sampled is the KL of the policy to the reference. One completion's may be
    negative. logprobs, reference_logprobs, mask: `(B, T)`.
    """
    return (k1(logprobs, reference_logprobs) * mask).sum(dim=1).tolist()


class TextLikelihood(NamedTuple):
    """Likelihood of a text under a model."""

    nats: float  # -log p of the predicted tokens, added up
    tokens: int  # predicted
    characters: int  # of the text that was read

    @property
    def perplexity(self) -> float:
        """`exp` of the mean of -log p per token. Models with different tokenizers have different tokens."""
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_character(self) -> float:
        """Bits per character of the text, which models with different tokenizers can be compared by."""
        return self.nats / math.log(2) / self.characters


def text_likelihood(model: Model, tokenizer, text: str, *, batch_size: int = 16) -> TextLikelihood:
    """Return the likelihood of a text, read in windows that do not overlap; the first token of each is given.

    Raises `ValueError` for a text of fewer than two tokens.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    size = min(positions(model) or WINDOW, WINDOW)
    windows = [window for start in range(0, len(ids), size) if len(window := ids[start : start + size]) > 1]
    if not windows:
        raise ValueError(f"the text has {len(ids)} tokens, and a perplexity needs at least 2")
    firsts, others = [window[:1] for window in windows], [window[1:] for window in windows]
    logprobs = completion_logprobs(model, firsts, others, batch_size=batch_size)
    return TextLikelihood(-math.fsum(map(math.fsum, logprobs)), sum(map(len, others)), len(text))
