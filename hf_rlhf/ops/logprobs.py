"""Log-probabilities and entropies of tokens from hidden states, in chunks, so that no `[N, V]` tensor outlives a chunk.

With gradients on, the backward pass computes each chunk again (Chen et al. 2016, arXiv 1604.06174), so the peak is one
chunk of logits and its gradient. It also calls the head again, and the head must return the same logits: no adapter may
have been switched in it meanwhile.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_rlhf.ops.padding import pad_sequences

CHUNK_ELEMENTS = 2**24
"""Logits held at once, in numbers: 64 MiB in fp32."""

_CACHED_ELEMENTS = 2**23
"""Fewest numbers of a chunk on a CPU, where a smaller chunk is also a faster one: 32 MiB in fp32.

glibc gives an array of 32 MiB or more pages of its own and returns them with it. Smaller ones lie between small objects
on the heap, which holds the memory of every chunk of a pass (M_MMAP_THRESHOLD in mallopt(3)).
"""
_FEWEST_ROWS = 64  # for which reading the head's weight is worth it there

Result = TypeVar("Result")
Support = Tensor | Sequence[Tensor | None]
"""Allowed token ids: `(N, K)`, padded with -1, or `N` tensors `(K,)`; None for all.

The tensors are padded a chunk at a time.
"""


class TokenScores(NamedTuple):
    """Log-probabilities and entropies of `N` tokens under the policy."""

    logprobs: Tensor  # (N,) fp32
    entropy: Tensor | None  # (N,) fp32, of the distribution that each token was drawn from


def token_logprobs(
    hidden: Tensor,
    targets: Tensor,
    head: Callable[[Tensor], Tensor],
    *,
    temperature: float = 1.0,
    support: Support | None = None,
    entropy: bool = False,
    chunk_size: int | None = None,
    vocab_size: int | None = None,
) -> TokenScores:
    """Compute `log p(target) = z_target - logsumexp_{v in S} z_v`  with  `z = head(hidden) / temperature`.

    `S` is the whole vocabulary, or, after top-k or top-p sampling, the tokens that were allowed at that position: the
    distribution that was really sampled from.

    Args:
        hidden: `(N, H)` hidden states that predict the targets; contiguous, or the head would copy its weight.
        targets: `(N,)` token ids.
        head: maps `(n, H)` to logits `(n, V)`, in any floating dtype.
        temperature: divides the logits; above 0.
        support: allowed token ids of each token, see `Support`; every target must be among its row's ids.
        entropy: also return the entropy of each distribution, in nats.
        chunk_size: tokens per chunk; by default `chunk_rows`.
        vocab_size: `V`, to choose the chunk size.
    """

    def score_chunk(hidden: Tensor, targets: Tensor, support: Support | None) -> tuple[Tensor, Tensor | None]:
        raw = head(hidden)  # (n, V)
        if support is None and torch.is_grad_enabled():
            chosen = cast(Tensor, ChosenLogprob.apply(raw, targets, temperature))
            return chosen, _entropy(_scaled(raw, temperature).log_softmax(dim=1)) if entropy else None
        scaled = _scaled(raw, temperature)
        if support is None:  # by the formula of `ChosenLogprob`: KL to itself has to be 0 to the last bit
            logprobs = scaled.log_softmax(dim=1)
            chosen = logprobs.gather(1, targets[:, None]).squeeze(1)
        else:
            allowed = _allowed(scaled, support)
            logprobs, normalizer = allowed.log_softmax(dim=1), allowed.logsumexp(dim=1)
            chosen = scaled.gather(1, targets[:, None]).squeeze(1) - normalizer
        return chosen, _entropy(logprobs) if entropy else None

    chunk_size = chunk_rows(vocab_size, hidden.device) if chunk_size is None else chunk_size
    logprobs, entropies = zip(*_by_chunk(score_chunk, hidden, targets, support, chunk_size), strict=True)
    return TokenScores(torch.cat(logprobs), torch.cat(entropies) if entropy else None)


class ChosenLogprob(torch.autograd.Function):
    """`log softmax(z / temperature)[target]` of each row: `(n, V), (n,) -> (n,)` fp32, with one fp32 matrix at a time.

    Autograd would hold five of them: the scaled logits, their exponentials, and a gradient for each way that leads
    back.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """Compute `log softmax(z / temperature)[target]`, and keep only the logits and targets."""
        ctx.save_for_backward(logits, targets)
        ctx.temperature = temperature
        return _scaled(logits, temperature).log_softmax(dim=1).gather(1, targets[:, None]).squeeze(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        """Compute `dz = g / temperature * ([v = target] - softmax(z / temperature)_v)`."""
        logits, targets = ctx.saved_tensors
        weight = (gradients[0] / ctx.temperature)[:, None]
        logits_gradient = _scaled(logits, ctx.temperature).softmax(dim=1).mul_(-weight)
        logits_gradient.scatter_add_(1, targets[:, None], weight)
        return logits_gradient.to(logits.dtype), None, None


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """Compute `z / temperature` in fp32, without a needless copy."""
    if temperature == 1:
        return logits.float()
    return logits / temperature if logits.dtype == torch.float32 else logits.float().div_(temperature)


def token_kl(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    reference_hidden: Tensor,
    reference_head: Callable[[Tensor], Tensor],
    *,
    temperature: float = 1.0,
    support: Support | None = None,
    chunk_size: int | None = None,
    vocab_size: int | None = None,
) -> Tensor:
    """Compute `KL(policy || reference) = sum_{v in S} p_v (log p_v - log q_v)`.

    p and q are the softmax of each one's logits over `S`.

    The exact KL of the next token, which the estimators of `hf_rlhf.ops.kl` find in the mean over samples (Schulman
    2020, http://joschu.net/blog/kl-approx.html). `S` as in `token_logprobs`; both distributions are renormalized over
    it. A token that the policy never draws adds nothing, to the gradient neither; one that it draws and the reference
    never does makes the KL infinite. Gradient flows into `hidden` and `head`, not into the reference.

    Args:
        hidden: `(N, H)` hidden states of the policy; contiguous, or the head would copy its weight.
        head: maps `(n, H)` to the policy's logits `(n, V)`, in any floating dtype.
        reference_hidden: `(N, H')` hidden states of the reference, for the same tokens.
        reference_head: maps `(n, H')` to the reference's logits `(n, V)`.
        temperature: divides the logits of both; above 0.
        support: allowed token ids of each token, see `Support`, at least one a row.
        chunk_size: tokens per chunk; by default `chunk_rows`, both models' logits counted.
        vocab_size: `V`, to choose the chunk size.

    Returns:
        `(N,)` fp32, in nats.
    """

    def kl_of_chunk(hidden: Tensor, reference_hidden: Tensor, support: Support | None) -> Tensor:
        with torch.no_grad():
            reference_logits = reference_head(reference_hidden).float() / temperature  # (n, V)
            reference_logprobs = _allowed(reference_logits, support).log_softmax(dim=1)
        logprobs = _allowed(head(hidden).float() / temperature, support).log_softmax(dim=1)
        # Selected before the product: 0 * (log 0 - log 0) is NaN, and so would be its gradient.
        log_ratio = torch.where(logprobs > float("-inf"), logprobs - reference_logprobs, 0)
        return (logprobs.exp() * log_ratio).sum(dim=1)

    chunk_size = chunk_rows(vocab_size, hidden.device, models=2) if chunk_size is None else chunk_size
    return torch.cat(_by_chunk(kl_of_chunk, hidden, reference_hidden, support, chunk_size))


@torch.no_grad()
def centered_embeddings(
    hidden: Tensor,
    targets: Tensor,
    head: Callable[[Tensor], Tensor],
    embeddings: Tensor,
    *,
    temperature: float = 1.0,
    support: Support | None = None,
    chunk_size: int | None = None,
    vocab_size: int | None = None,
) -> Tensor:
    """Compute `e_a - sum_{v in S} p_v e_v`: the embedding of the token, less the policy's mean of all embeddings.

    A function that is linear in it has mean 0 under the policy at every state, as an advantage has.

    Args:
        hidden, targets, head, temperature, support, chunk_size, vocab_size: as in `token_logprobs`.
        embeddings: `(V, E)` e, of every token.

    Returns:
        `(N, E)` fp32, without gradient.
    """
    table = embeddings.float()

    def center_chunk(hidden: Tensor, targets: Tensor, support: Support | None) -> Tensor:
        scaled = _scaled(head(hidden), temperature)  # (n, V)
        probabilities = _allowed(scaled, support).softmax(dim=1)  # (n, K)
        if support is not None:
            ids = _padded(support, scaled.shape[1]).to(scaled.device).clamp(min=0).long()
            probabilities = torch.zeros_like(scaled).scatter_add_(1, ids, probabilities)  # 0 of padding, whose id is 0
        return table[targets] - probabilities @ table[: scaled.shape[1]]

    chunk_size = chunk_rows(vocab_size, hidden.device, models=2) if chunk_size is None else chunk_size
    return torch.cat(_by_chunk(center_chunk, hidden, targets, support, chunk_size))


def chunk_rows(vocab_size: int | None, device: torch.device, models: int = 1) -> int:
    """Return the number of tokens in a chunk, when the logits of `models` models are held for each."""
    width = models * (vocab_size or 2**16)
    rows = CHUNK_ELEMENTS // width
    if device.type == "cpu":
        rows = min(rows, max(math.ceil(_CACHED_ELEMENTS / width), _FEWEST_ROWS))
    return max(1, rows)


def _by_chunk(
    function: Callable[[Tensor, Tensor, Support | None], Result],
    hidden: Tensor,
    other: Tensor,
    support: Support | None,
    chunk_size: int,
) -> list[Result]:
    """Apply `function` to every `chunk_size` rows, at least once; keep nothing inside it for the backward pass."""
    results = []
    for start in range(0, max(len(hidden), 1), chunk_size):
        rows = slice(start, start + chunk_size)
        chunk = (hidden[rows], other[rows], None if support is None else support[rows])
        if torch.is_grad_enabled() and hidden.requires_grad:
            results.append(checkpoint(function, *chunk, use_reentrant=False))
        else:
            results.append(function(*chunk))
    return results


def _allowed(logits: Tensor, support: Support | None) -> Tensor:
    """Return the logits of the supported tokens, -inf in its padding; without support, all logits.

    `(n, V), (n, K) -> (n, K)`.
    """
    if support is None:
        return logits
    support = _padded(support, logits.shape[1]).to(logits.device)
    return logits.gather(1, support.clamp(min=0).long()).masked_fill(support < 0, float("-inf"))


def _entropy(logprobs: Tensor) -> Tensor:
    """Compute `H = - sum_v p_v log p_v` over the allowed tokens, `(n, K) -> (n,)`.

    Without gradients it overwrites `logprobs`.
    """
    probabilities, least = logprobs.exp(), torch.finfo(logprobs.dtype).min  # 0 * -inf is NaN
    if torch.is_grad_enabled():
        return -(probabilities * logprobs.clamp(min=least)).sum(dim=1)
    return -probabilities.mul_(logprobs.clamp_(min=least)).sum(dim=1)


def _padded(support: Support, vocab_size: int) -> Tensor:
    """Return allowed ids `(n, K)` without columns that are padding in every row, but with one column at least."""
    if len(support) == 0:
        return torch.empty(0, 1, dtype=torch.int)
    if not isinstance(support, Tensor):
        rows = [torch.arange(vocab_size, dtype=torch.int) if ids is None else ids for ids in support]
        return pad_sequences(rows, -1, dtype=rows[0].dtype)
    width = int((support >= 0).sum(dim=1).max())
    return support[:, : max(width, 1)]
