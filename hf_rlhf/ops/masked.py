"""Sums, moments and whitening over counted tokens.

A value where the mask is False is never looked at: it may be NaN, infinite or left over from padding.
"""

from typing import NamedTuple

import torch
from torch import Tensor

STD_EPS = 1e-8


def masked_sum(x: Tensor, mask: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Compute `sum_i m_i x_i`, over everything or along `dim`.

    x: any shape; mask: bool, broadcastable to x. Nothing counted gives 0.
    """
    # Selecting, not multiplying: NaN * 0 is NaN.
    return torch.where(mask, x, 0).sum(dim)


class Moments(NamedTuple):
    """Mean, population variance and number of counted values: scalars, or all of one shape. Of nothing: NaN, NaN, 0."""

    mean: Tensor
    variance: Tensor
    count: Tensor


def masked_moments(x: Tensor, mask: Tensor) -> Moments:
    """Compute `mean = sum_i m_i x_i / n`, `variance = sum_i m_i (x_i - mean)^2 / n`, `n = sum_i m_i`.

    x: any shape; mask: bool of the same shape. Computed in float32 or wider; scalars. `combine` joins those of several
    ranks into the moments of the whole batch.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    weights = mask.to(x.dtype)
    mean = _weighted_mean(x, weights)
    variance = masked_sum((x - mean).square(), mask) / weights.sum()
    return Moments(mean, variance, mask.sum())


def combine(*moments: Moments) -> Moments:
    """Combine the moments of parts into those of all values together; empty parts are skipped.

    `n = sum n_k;  mean = sum n_k mean_k / n;  variance = sum n_k (variance_k + (mean_k - mean)^2) / n`
    (Chan, Golub and LeVeque 1979, http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf).
    A part may hold scalars, or one-dimensional tensors with an entry for each rank.
    """
    if not moments:
        raise ValueError("combine() needs at least one Moments")
    means = torch.cat([part.mean.reshape(-1) for part in moments])
    variances = torch.cat([part.variance.reshape(-1) for part in moments])
    counts = torch.cat([part.count.reshape(-1) for part in moments])
    weights = counts.to(means.dtype)
    mean = _weighted_mean(means, weights)
    variance = masked_sum(weights * (variances + (means - mean).square()), counts > 0) / weights.sum()
    return Moments(mean, variance, counts.sum())


def whiten(x: Tensor, mask: Tensor, center: bool = True, moments: Moments | None = None) -> Tensor:
    """Compute `(x - mean) / (std + 1e-8)`; with `center=False`, add the mean back, so that only the spread changes.

    x: any shape; mask: bool of the same shape; moments: those of the global batch, by default of x itself.
    Values not counted become 0. Equal values have no spread: they become 0 (the mean with `center=False`), never NaN.
    """
    mean, variance, _ = masked_moments(x, mask) if moments is None else moments
    whitened = (x - mean) / (variance.sqrt() + STD_EPS)
    if not center:
        whitened = whitened + mean
    return torch.where(mask, whitened, 0)


def _weighted_mean(x: Tensor, weights: Tensor) -> Tensor:
    counted, total = weights > 0, weights.sum()
    mean = masked_sum(weights * x, counted) / total
    # The sum of equal numbers is rounded, and whitening would blow that last bit up to order 1. One correction by the
    # mean of what is left makes the mean of equal numbers exact.
    return mean + masked_sum(weights * (x - mean), counted) / total
