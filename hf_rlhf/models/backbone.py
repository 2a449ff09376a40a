"""What lies inside a transformers model: last hidden states, and the map from them to logits."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import base_of, compute_in_base_dtype, keep_modes
from hf_rlhf.types import Model, Sequences

_SHORT = 128


def backbone_states(model: Model, sequences: Sequences) -> Tensor:
    """Last hidden states `(B, L, H)`, after the final norm and before any head. `model` has no PEFT wrapper."""
    backbone = model.base_model
    if backbone is model:  # Llama 4's text model keeps its backbone under another name than it says
        backbone = model.model
    return backbone(
        input_ids=sequences.input_ids, attention_mask=sequences.attention_mask.long(), use_cache=False
    ).last_hidden_state


def plain_attention_is_faster(device: torch.device | str, longest: int, *, recomputes: bool) -> bool:
    """Whether to train with plain attention instead of the fused one, whose backward pass is slow on a CPU.

    Measured with a 135M model on two cores: an update is 24 % faster at 128 tokens, 12 % at 256 and slower at 512; but it keeps
    the attention of each token to each other, which from 256 on is most of what is kept.
    """
    return str(device) == "cpu" and longest <= _SHORT and not recomputes


def with_fused_attention(*modules: nn.Module | None) -> list[Model]:
    """The transformers models in `modules` that use the fused attention (torch's scaled dot product)."""
    models = [
        base_of(part) for module in modules if module is not None for part in (module, getattr(module, "model", None))
    ]
    return [m for m in models if getattr(getattr(m, "config", None), "_attn_implementation", None) == "sdpa"]


def set_attention(models: Sequence[Model], kind: str) -> None:
    """Compute attention by `kind` (eager, sdpa) from now on."""
    for model in models:
        if model.config._attn_implementation != kind:
            model.set_attn_implementation(kind)


def counted_states(model: Model, sequences: Sequences) -> Tensor:
    """Hidden states `(N, H)` that predict the counted tokens, contiguous: the states those tokens were sampled in."""
    rows, columns = sequences.counted
    # One contiguous matrix: a slice of the states would send lm_head down a path that copies its weight.
    return backbone_states(model, sequences)[rows, sequences.prompt_lengths[rows] + columns - 1]


def counted_ids(sequences: Sequences) -> Tensor:
    """Ids `(N,)` of the counted tokens."""
    rows, columns = sequences.counted
    return sequences.input_ids[rows, sequences.prompt_lengths[rows] + columns]


def state_width(model: Model) -> int:
    """`H`, the size of the last hidden states; in some architectures (OPT-350m) not the hidden size."""
    config = model.config.get_text_config()
    return getattr(config, "word_embed_proj_dim", None) or config.hidden_size


def logits_head(causal_lm: Model) -> Callable[[Tensor], Tensor]:
    """The map from hidden states to logits, with the scaling or soft cap that some architectures put behind it."""
    head = causal_lm.get_output_embeddings()
    config = causal_lm.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2 and 3
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)

    def logits(hidden: Tensor) -> Tensor:
        raw = head(hidden)
        raw = raw * scale if scale != 1.0 else raw
        return cap * torch.tanh(raw / cap) if cap else raw

    return logits


@torch.no_grad()
def require_known_head(model: Model) -> None:
    """Raise `InputError` when a model puts something behind its head that `logits_head` does not know."""
    causal_lm = base_of(model)
    device = next(causal_lm.parameters()).device
    ids = torch.arange(1, 5, device=device)[None] % causal_lm.config.get_text_config().vocab_size
    with keep_modes(causal_lm), compute_in_base_dtype(model):
        causal_lm.eval()
        counted = torch.ones_like(ids, dtype=torch.bool)
        sequences = Sequences(ids, counted, ids[:, 0], counted[:, :1])
        theirs = causal_lm(input_ids=ids, use_cache=False).logits.float()
        ours = logits_head(causal_lm)(backbone_states(causal_lm, sequences)).float()
    if not torch.allclose(ours, theirs, rtol=0.02, atol=0.02 * theirs.abs().max().item()):
        raise InputError(
            f"{type(causal_lm).__name__} does something between its head and its logits that is not known here, so what"
            " is trained would not be what samples; please report the architecture"
        )


def disable_dropout(model: nn.Module) -> list[tuple[Any, str, float]]:
    """Set every dropout probability to 0: of modules, of layers and routers that keep a number, and in the configs.

    Returns what was set in configs before, as (config, name, value), so that a saved model can have it back.
    """
    in_configs = []
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for holder in (module, getattr(module, "config", None)):  # Falcon's layers look into their config each time
            for name, value in list(vars(holder).items()) if hasattr(holder, "__dict__") else ():
                if isinstance(value, float) and value and ("drop" in name or name == "jitter_noise"):
                    setattr(holder, name, 0.0)
                    if holder is not module:
                        in_configs.append((holder, name, value))
    return in_configs
