"""KL(policy || reference), estimated token by token from samples of the policy.

With `log r = log reference(x) - log policy(x)`, x sampled from the policy (Schulman 2020, "Approximating KL
Divergence", http://joschu.net/blog/kl-approx.html):

    k1 = -log r              unbiased, high variance, may be negative
    k2 = (log r)^2 / 2       biased, low variance, never negative; its gradient is that of the KL
    k3 = r - 1 - log r       unbiased, low variance, never negative

All take log-probabilities of the sampled tokens, (B, T) or any shape, and give the same shape. Mask at the reduction.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Compute `-log r`. Its mean over samples of the policy is the exact KL. (B, T) -> (B, T)."""
    return logprobs - reference_logprobs


def k2(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Compute `(log r)^2 / 2`. Close to the KL where the two distributions are close. (B, T) -> (B, T)."""
    return 0.5 * (reference_logprobs - logprobs).square()


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Compute `r - 1 - log r`. Its mean over samples of the policy is the exact KL. (B, T) -> (B, T)."""
    log_r = reference_logprobs - logprobs
    return torch.expm1(log_r) - log_r


def absolute(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Compute `|log r|`. Not a KL, but a penalty on any change (TRL's kl_penalty="abs"). (B, T) -> (B, T)."""
    return (reference_logprobs - logprobs).abs()


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3, "abs": absolute}

FULL_KL = "full"
"""Names the exact KL.

It is no estimate from sampled tokens: it needs hidden states, see `ops/logprobs.py`, `token_kl`.
"""


def kl_estimate(kind: str, logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Compute the estimator named `kind`: "k1", "k2", "k3" or "abs". Any other raises ValueError. (B, T) -> (B, T)."""
    if kind not in KL_ESTIMATORS:
        raise ValueError(f"unknown KL estimator {kind!r}. Choose one of {', '.join(map(repr, KL_ESTIMATORS))}")
    return KL_ESTIMATORS[kind](logprobs, reference_logprobs)
