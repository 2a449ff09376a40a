"""Log-probabilities of chosen tokens from hidden states, in chunks, so that no `[N, V]` tensor outlives a chunk."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**24
"""Logits held at once, in numbers: 64 MiB in fp32."""


class TokenScores(NamedTuple):
    """What the policy says of `N` tokens."""

    logprobs: Tensor  # (N,) fp32
    entropy: Tensor | None  # (N,) fp32, of the distribution that each token was drawn from


def token_logprobs(
    hidden: Tensor,
    targets: Tensor,
    head: Callable[[Tensor], Tensor],
    *,
    temperature: float = 1.0,
    support: Tensor | None = None,
    entropy: bool = False,
    chunk_size: int | None = None,
    vocab_size: int | None = None,
) -> TokenScores:
    """Log p(target) = z_target - logsumexp_{v in S} z_v  with  z = head(hidden) / temperature.

    `S` is the whole vocabulary, or, after top-k or top-p sampling, the tokens that were allowed at that position: the
    distribution that was really sampled from. With gradients on, each chunk is computed again in the backward pass
    (Chen et al. 2016, arXiv 1604.06174), so the peak is one chunk of logits and its gradient.

    Args:
        hidden: `(N, H)` hidden states that predict the targets; contiguous, or the head would copy its weight.
        targets: `(N,)` token ids.
        head: maps `(n, H)` to logits `(n, V)`, in any floating dtype.
        temperature: divides the logits; above 0.
        support: `(N, K)` allowed token ids, padded with -1; every target must be among its row's ids.
        entropy: also return the entropy of each distribution, in nats.
        chunk_size: tokens per chunk; by default as many as `CHUNK_ELEMENTS` logits allow.
        vocab_size: `V`, to choose the chunk size.
    """
    if chunk_size is None:
        chunk_size = max(1, CHUNK_ELEMENTS // (vocab_size or 2**16))

    def score_chunk(hidden: Tensor, targets: Tensor, support: Tensor | None) -> tuple[Tensor, Tensor | None]:
        logits = head(hidden).float() / temperature  # (n, V)
        chosen = logits.gather(1, targets[:, None]).squeeze(1)
        if support is not None:
            allowed = support >= 0
            logits = logits.gather(1, support.clamp(min=0).long()).masked_fill(~allowed, float("-inf"))
        normaliser = logits.logsumexp(dim=1)
        return chosen - normaliser, _entropy(logits, normaliser) if entropy else None

    logprobs, entropies = [], []
    for start in range(0, max(len(targets), 1), chunk_size):
        rows = slice(start, start + chunk_size)
        chunk = (hidden[rows], targets[rows], None if support is None else _trim(support[rows]))
        if torch.is_grad_enabled() and hidden.requires_grad:
            scored = checkpoint(score_chunk, *chunk, use_reentrant=False)
        else:
            scored = score_chunk(*chunk)
        logprobs.append(scored[0])
        entropies.append(scored[1])
    return TokenScores(torch.cat(logprobs), torch.cat(entropies) if entropy else None)


def _entropy(logits: Tensor, normaliser: Tensor) -> Tensor:
    """H = logsumexp(z) - sum_v p_v z_v  over the allowed tokens. `(n, K), (n,) -> (n,)`."""
    probabilities = (logits - normaliser[:, None]).exp()
    return normaliser - (probabilities * logits.masked_fill(probabilities == 0, 0.0)).sum(dim=1)


def _trim(support: Tensor) -> Tensor:
    """Drop the columns that are padding in every row."""
    width = int((support >= 0).sum(dim=1).max()) if len(support) else 0
    return support[:, : max(width, 1)]
