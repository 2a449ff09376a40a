"""The tokens that top-k, top-p and min-p leave, for completions whose sampler does not say it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hf_rlhf.distributed import in_step
from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import base_of, compute_in_base_dtype
from hf_rlhf.models.backbone import counted_ids, counted_states, logits_head
from hf_rlhf.ops.logprobs import chunk_rows
from hf_rlhf.rollout.engines import truncated_logits
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.types import Model, Sequences, TokenSupport, Trajectory

_OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
_ROUNDING = {torch.float32: 1e-3}
"""Largest difference of a logit between two passes over the same tokens.

It is 0.5 in bf16, whose logits near 20 are 0.125 apart.
"""


@torch.no_grad()
def fill_in_support(
    model: Model,
    tokenizer,
    trajectories: Sequence[Trajectory],
    sampling: Sampling,
    batch_size: int,
    *,
    together: bool = False,
) -> None:
    """Fill in `support` by the logits of `model` where a completion has none, `batch_size` sequences at once.

    Their log-probabilities are then those of the distribution that `sampling` draws from. A token that rounding alone
    puts outside of it is taken in. Raises `InputError` for any other token outside that counts. With `together`, every
    rank makes the same number of forward passes (`in_step`).
    """
    lacking = [(b, each) for b, each in enumerate(trajectories) if each.completion.support is None]
    batches = [lacking[start : start + batch_size] for start in range(0, len(lacking), batch_size)]
    for batch in in_step(batches, []) if together else batches:
        if not batch:
            _ = list(_allowed(model, Sequences.of_one_token(), sampling))
            continue
        sequences = Sequences.from_trajectories([trajectory for _, trajectory in batch])
        allowed = _allowed(model, sequences, sampling)
        for b, trajectory in batch:
            support = []
            for t, token in enumerate(trajectory.completion.ids):
                counts = trajectory.mask is None or trajectory.mask[t]
                support.append(next(allowed) if counts else torch.tensor([token], dtype=torch.int))
            trajectory.completion = replace(trajectory.completion, support=TokenSupport.of(support))
            require_supported(trajectory, b, tokenizer, sampling)


def require_supported(trajectory: Trajectory, b: int, tokenizer, sampling: Sampling) -> None:
    """Raise `InputError` for a counted token of completion `b` that is not among those its `support` allows."""
    ids, support = trajectory.completion.ids, trajectory.completion.support or []
    if len(support) != len(ids):
        raise InputError(
            f"completion {b} (counted from 0) has a support of {len(support)} tokens for {len(ids)} tokens"
        )
    for t, (token, allowed) in enumerate(zip(ids, support, strict=True)):
        if (trajectory.mask is None or trajectory.mask[t]) and not (allowed == token).any():
            flags = {"top_k": sampling.top_k, "top_p": sampling.top_p, "min_p": sampling.min_p}
            settings = " and ".join(f"{name}={value}" for name, value in flags.items() if value != _OFF[name])
            raise InputError(
                f"completion {b} (counted from 0) cannot have been sampled: its token {t},"
                f" {tokenizer.decode([token])!r} (id {token}), is not among the {len(allowed)} that"
                f" {settings or 'its support'} left to choose from. Sample with the run's settings, mask the token, or"
                " omit top_k, top_p and min_p"
            )


def _allowed(model: Model, sequences: Sequences, sampling: Sampling) -> Iterator[Tensor]:
    """Return the allowed ids `(K,)` of each of the `N` counted tokens."""
    causal_lm = base_of(model)
    device, rounding = next(causal_lm.parameters()).device, _ROUNDING.get(causal_lm.dtype, 0.5)
    sequences = sequences.to(device)
    with compute_in_base_dtype(model):
        hidden = counted_states(causal_lm, sequences)  # (N, H)
        size = chunk_rows(causal_lm.config.get_text_config().vocab_size, device, models=4)
        for states, ids in zip(hidden.split(size), counted_ids(sequences)[:, None].split(size), strict=True):
            logits = logits_head(causal_lm)(states).float()  # (n, V)
            allowed = truncated_logits(logits, sampling).isfinite()
            raised = logits.scatter_add(1, ids, torch.full_like(ids, rounding, dtype=logits.dtype))
            within_rounding = truncated_logits(raised, sampling).isfinite().gather(1, ids)
            for row in allowed.scatter(1, ids, within_rounding):
                yield row.nonzero().squeeze(1).int().cpu()
