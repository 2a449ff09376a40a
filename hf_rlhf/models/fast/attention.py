"""Attention for training: without padding where a model allows it, and in the way that is fastest on the device.

The tokens of a batch lie end to end in one row, `(1, N)`, so that norms, products and activations see real tokens only;
attention alone takes the sequences apart again. transformers has such rows for flash attention on GPUs;
`packed_attention` needs no kernels of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from hf_rlhf.models.adapters import compute_in_base_dtype, keep_modes
from hf_rlhf.models.batch_layout import BatchLayout, Row, backbone_of, packed, padded
from hf_rlhf.types import Model

PACKED = "hf_rlhf_packed"
"""The name under which transformers knows `packed_attention`."""

FUSED = "sdpa"
"""torch's scaled dot product attention, by its name in transformers."""

_SHORT = 128


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    row: Row | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention of sequences that lie end to end, by transformers' contract for attention functions.

    query: `(1, heads, N, D)`; key, value: `(1, key heads, N, D)`; `row` says which of the N are one sequence. Without
    it, whatever torch's fused attention does with the mask, as for sampling. Returns `(1, N, heads, D)`.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if softcap is not None or kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise NotImplementedError("attention with a soft cap, sinks or biases is left to the model's own code")
    if row is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scale = scaling or query.shape[-1] ** -0.5
    if row.alike and plain_attention_is_faster(query.device, row.longest):
        return _all_at_once(query, key, value, row, scale, dropout, sliding_window).transpose(1, 2), None
    queries, keys, values = (part.split(row.lengths, dim=2) for part in (query, key, value))
    attended = [
        _causal(*sequence, scaling=scale, dropout=dropout, window=sliding_window)
        for sequence in zip(queries, keys, values, strict=True)
    ]
    return torch.cat(attended, dim=2).transpose(1, 2), None


def _causal(query: Tensor, key: Tensor, value: Tensor, *, scaling: float, dropout: float, window: int | None) -> Tensor:
    """Compute attention of one sequence to itself, `(1, heads, L, D)`; a token sees `window` tokens with itself."""
    length = query.shape[2]
    plain = plain_attention_is_faster(query.device, length)
    mask = _seen(length, window, query.device) if plain or (window or length) < length else None
    if plain and mask is not None:
        return _plain(query, key, value, mask, scaling, dropout)
    return nn.functional.scaled_dot_product_attention(
        query, key, value, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=True
    )


def _all_at_once(
    query: Tensor, key: Tensor, value: Tensor, row: Row, scaling: float, dropout: float, window: int | None
) -> Tensor:
    """Compute attention of each sequence to itself, `(1, heads, N, D)`, as one padded batch; padding is never seen."""
    queries, keys, values = (cast(Tensor, _ToBatch.apply(part, row)) for part in (query, key, value))
    attended = _plain(queries, keys, values, _seen(row.longest, window, query.device), scaling, dropout)
    return cast(Tensor, _ToRow.apply(attended, row))


class _ToBatch(torch.autograd.Function):
    """Reshaping `(1, heads, N, D) -> (B, heads, L, D)`. Gradients of padding are zero and need not be added."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, row: Row) -> Tensor:
        ctx.row = row
        return _batched(x.index_select(2, row.to_batch), row)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        return _unbatched(gradients[0], ctx.row).index_select(2, ctx.row.to_row), None


class _ToRow(torch.autograd.Function):
    """Reshaping `(B, heads, L, D) -> (1, heads, N, D)`, the padding omitted."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, row: Row) -> Tensor:
        ctx.row = row
        return _unbatched(x, row).index_select(2, row.to_row)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        gradient, row = gradients[0], ctx.row
        padded = gradient.new_zeros(*gradient.shape[:2], len(row.to_batch), gradient.shape[3])
        return _batched(padded.index_copy_(2, row.to_row, gradient), row), None


def _batched(x: Tensor, row: Row) -> Tensor:
    """Reshape `(1, heads, B L, D) -> (B, heads, L, D)`."""
    return x.view(x.shape[1], -1, row.longest, x.shape[3]).transpose(0, 1)


def _unbatched(x: Tensor, row: Row) -> Tensor:
    """Reshape `(B, heads, L, D) -> (1, heads, B L, D)`."""
    return x.transpose(0, 1).reshape(1, x.shape[1], -1, x.shape[3])


def _seen(length: int, window: int | None, device: torch.device) -> Tensor:
    """Return `(L, L)`, True where a token sees another: itself and those before it, within the window."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - (window or length))


def _plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, dropout: float) -> Tensor:
    """Compute `softmax(s Q K' + mask) V`: `(B, heads, L, D)`. `mask` `(L, L)` is True where a token is seen."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    weights = (query @ key.transpose(2, 3)) * scaling
    weights = weights.masked_fill(~mask, torch.finfo(weights.dtype).min)
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return nn.functional.dropout(weights, dropout) @ value if dropout else weights @ value


def plain_attention_is_faster(device: torch.device | str, length: int) -> bool:
    """Return whether plain attention trains sequences of `length` tokens faster than torch's fused attention.

    The backward pass of the fused one is slow on a CPU. Measured with a 135M model on two cores, an update with plain
    attention is 24 % faster at 128 tokens, 12 % at 256 and slower at 512. But plain attention keeps a weight for each
    pair of tokens, which is most of the memory from 256 tokens on. The two round differently, so every pass over a
    sequence must make the same choice.
    """
    return torch.device(device).type == "cpu" and length <= _SHORT


def packs(model: Model) -> bool:
    """Return whether `model` now computes its states without padding."""
    return model.config._attn_implementation == PACKED


def layout_of(model: Model, input_ids: Tensor, attention_mask: Tensor) -> BatchLayout:
    """Lay a right-padded batch `(B, L)` out as `model` takes it now."""
    return (packed if packs(model) else padded)(input_ids, attention_mask)


def training_attention(
    models: Sequence[Model], device: torch.device | str, longest: int, *, packing: bool, recomputes: bool
) -> dict[Model, str]:
    """Return a faster kind of attention for each model that now trains with torch's fused one, if there is one.

    Args:
        models: transformers models, without PEFT's wrapper.
        device: they will train on.
        longest: most tokens of a sequence.
        packing: whether padding may be omitted.
        recomputes: whether activations are computed again in the backward pass (gradient checkpointing).
    """
    kinds = {}
    for model in models:
        if getattr(model.config, "_attn_implementation", None) != FUSED:
            continue
        if packing and _can_pack(model, longest):
            kinds[model] = PACKED
        elif plain_attention_is_faster(device, longest) and not recomputes:
            kinds[model] = "eager"
    return kinds


@contextmanager
def attention(model: Model, kind: str) -> Iterator[None]:
    """Compute attention by `kind` as long as the block."""
    before = model.config._attn_implementation
    set_attention({model: kind})
    try:
        yield
    finally:
        set_attention({model: before})


def set_attention(kinds: Mapping[Model, str]) -> None:
    """Compute each model's attention by its kind (eager, sdpa, `PACKED`) from now on."""
    for model, kind in kinds.items():
        if model.config._attn_implementation != kind:
            model.set_attn_implementation(kind)


@torch.no_grad()
def _can_pack(model: Model, longest: int) -> bool:
    """Return whether this architecture keeps sequences in one row apart and computes the same states as with padding.

    The trial uses more tokens than the smallest window that a token sees, if some sequence will have more.
    """
    _register()
    config = model.config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    length = max([6, *(window + 4 for window in windows if window and window < longest)])
    device = next(model.parameters()).device
    ids = torch.arange(1, 2 * length + 1, device=device).reshape(2, length) % config.vocab_size
    others = ids.clone()
    others[0] = ids[0].flip(0)
    real = torch.ones_like(ids)
    real[0, 4:] = 0
    second_row = torch.ones(length, dtype=torch.long, device=device), torch.arange(length, device=device)

    def states_of_second(ids: Tensor, kind: str) -> Tensor:
        with attention(model, kind):
            layout = packed(ids, real) if kind == PACKED else padded(ids, real)
            return layout.take(layout.run(backbone_of(model)), *second_row).float()

    with keep_modes(model), compute_in_base_dtype(model):
        model.eval()
        try:
            fused, plain, end_to_end = (states_of_second(ids, kind) for kind in (FUSED, "eager", PACKED))
            alone = torch.equal(end_to_end, states_of_second(others, PACKED))
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
            return False  # its code takes no sequences in one row
    # In bf16 the two padded ones are percents apart, and packing rounds as one of them.
    rounding = max(0.01, _apart(fused, plain))
    return alone and min(_apart(end_to_end, fused), _apart(end_to_end, plain)) <= rounding


def _apart(states: Tensor, others: Tensor) -> float:
    return ((states - others).norm() / others.norm()).item()


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, sdpa_mask)
