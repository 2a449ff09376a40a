"""The variance of the policy gradient over completions, under each estimator of the advantage."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hf_rlhf.distributed import global_sum
from hf_rlhf.models.adapters import keep_modes
from hf_rlhf.models.policy import PolicyWithValue
from hf_rlhf.ppo.experience import Experience


def gradient_variance(
    policy: PolicyWithValue, experience: Experience, advantages: Mapping[str, Tensor], temperature: float
) -> dict[str, float]:
    """Compute `sum_i |g_i - mean g|^2 / (N - 1)` for each estimator: the trace of the covariance of `g_i`.

    `g_i = sum_t A_t grad log pi(x_t | s_t)` is the gradient of completion i by all trained weights of the policy, at
    the weights that sampled it. The `N` completions are those of all ranks that have a token that counts. No weight and
    no gradient of the training is touched.

    Each completion takes a backward pass for all estimators that give all of its tokens one advantage, and one for each
    of the others. Each estimator takes as much memory as one gradient.

    Args:
        policy: as it sampled.
        experience: of this rank.
        advantages: by the estimator's name, `(B, T)` each, before whitening.
        temperature: that it was sampled with.

    Returns NaN for fewer than two completions. Every rank takes part.
    """
    weights = policy.policy_parameters()
    sums = {name: _Sums(weights) for name in advantages}
    with keep_modes(policy), torch.enable_grad():
        policy.eval()
        for b in range(len(experience)):
            mask = experience.mask[b]
            if not mask.any():
                continue
            rows = {name: of_all[b][mask] for name, of_all in advantages.items()}
            of_one = _gradients(policy, experience[torch.tensor([b])], rows, weights, temperature)
            for name, (scale, gradient) in of_one.items():
                sums[name].add(gradient, scale)
    return {name: each.variance() for name, each in sums.items()}


def _gradients(
    policy: PolicyWithValue,
    completion: Experience,
    advantages: Mapping[str, Tensor],
    weights: Sequence[Tensor],
    temperature: float,
) -> dict[str, tuple[float, list[Tensor]]]:
    """Return a number and a gradient, whose product is that of each estimator; `advantages` `(N,)` are of one row."""
    sequences = completion.sequences.to(weights[0].device)
    logprobs = policy.forward(sequences, temperature=temperature, values=False).logprobs[sequences.mask]  # (N,)

    def gradient(tokens: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(
            (tokens.to(logprobs.device) * logprobs).sum(), weights, retain_graph=True, allow_unused=True
        )
        return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]

    found: dict[str, tuple[float, list[Tensor]]] = {}
    of_ones: list[Tensor] | None = None
    for name, tokens in advantages.items():
        if (tokens == tokens[0]).all():
            of_ones = gradient(torch.ones_like(tokens)) if of_ones is None else of_ones
            found[name] = tokens[0].item(), of_ones
        else:
            found[name] = 1.0, gradient(tokens)
    return found


class _Sums:
    """Sums over completions: their number, their gradients, and the squares of those."""

    def __init__(self, weights: Sequence[Tensor]):
        self.gradient = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
        self.count, self.squares = 0, 0.0

    def add(self, gradient: Sequence[Tensor], scale: float) -> None:
        self.count += 1
        for total, part in zip(self.gradient, gradient, strict=True):
            total.add_(part, alpha=scale)
            self.squares += scale**2 * part.double().square().sum().item()

    def variance(self) -> float:
        count, squares = global_sum(torch.tensor([self.count, self.squares], dtype=torch.float64)).tolist()
        of_mean = sum(global_sum(part).double().square().sum().item() for part in self.gradient) / max(count, 1)
        return (squares - of_mean) / (count - 1) if count > 1 else float("nan")
