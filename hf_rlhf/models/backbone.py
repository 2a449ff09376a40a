"""The parts inside a transformers model: last hidden states, and the map from them to logits."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import base_of, compute_in_base_dtype, keep_modes
from hf_rlhf.models.batch_layout import backbone_of
from hf_rlhf.models.fast.attention import layout_of
from hf_rlhf.models.fast.trunk import TrunkStates
from hf_rlhf.types import Model, Sequences


def states_at(
    model: Model,
    input_ids: Tensor,
    attention_mask: Tensor,
    rows: Tensor,
    columns: Tensor,
    entry: TrunkStates | None = None,
) -> Tensor:
    """Return the last hidden states `(N, H)`, after the final norm, of the tokens at `rows` and `columns`.

    The batch `(B, L)` is right-padded. `model` has no PEFT wrapper. With `entry`, the states that enter the first block
    above the trunk are not computed. The result is contiguous: a slice of the states would send lm_head down a path
    that copies its weight.
    """
    layout = layout_of(model, input_ids, attention_mask)
    with nullcontext() if entry is None else entry.given_to(model, layout):
        return layout.take(layout.run(backbone_of(model)), rows, columns)


def counted_states(model: Model, sequences: Sequences, entry: TrunkStates | None = None) -> Tensor:
    """Return the hidden states `(N, H)` that predict the counted tokens: the states those tokens were sampled in."""
    rows, columns = sequences.counted
    places = sequences.prompt_lengths[rows] + columns - 1
    return states_at(model, sequences.input_ids, sequences.attention_mask, rows, places, entry)


def counted_ids(sequences: Sequences) -> Tensor:
    """Return the ids `(N,)` of the counted tokens."""
    rows, columns = sequences.counted
    return sequences.input_ids[rows, sequences.prompt_lengths[rows] + columns]


def state_width(model: Model) -> int:
    """Return `H`, the size of the last hidden states; in some architectures (OPT-350m) not the hidden size."""
    config = model.config.get_text_config()
    return getattr(config, "word_embed_proj_dim", None) or config.hidden_size


def logits_head(causal_lm: Model, head: Callable[[Tensor], Tensor] | None = None) -> Callable[[Tensor], Tensor]:
    """Return the map from hidden states to logits, with the scaling or soft cap that follows some heads.

    `head` replaces the model's own layer, such as by some of its rows.
    """
    of_model = causal_lm.get_output_embeddings() if head is None else head
    config = causal_lm.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2 and 3
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)

    def logits(hidden: Tensor) -> Tensor:
        raw = of_model(hidden)
        raw = raw * scale if scale != 1.0 else raw
        return cap * torch.tanh(raw / cap) if cap else raw

    return logits


def block_names(model: Model) -> set[str]:
    """Return the class names of the repeated blocks of a transformers model."""
    return {
        type(blocks[0]).__name__
        for blocks in backbone_of(model).modules()
        if isinstance(blocks, nn.ModuleList) and len(blocks) > 0 and len({type(block) for block in blocks}) == 1
    }


@torch.no_grad()
def require_known_head(model: Model) -> None:
    """Raise `InputError` when a model puts something behind its head that `logits_head` does not know."""
    causal_lm = base_of(model)
    device = next(causal_lm.parameters()).device
    ids = torch.arange(1, 5, device=device)[None] % causal_lm.config.get_text_config().vocab_size
    with keep_modes(causal_lm), compute_in_base_dtype(model):
        causal_lm.eval()
        rows, columns = torch.ones_like(ids).nonzero(as_tuple=True)
        theirs = causal_lm(input_ids=ids, use_cache=False).logits[0].float()
        ours = logits_head(causal_lm)(states_at(causal_lm, ids, torch.ones_like(ids), rows, columns)).float()
    if not torch.allclose(ours, theirs, rtol=0.02, atol=0.02 * theirs.abs().max().item()):
        raise InputError(
            f"{type(causal_lm).__name__} changes its logits behind its head in a way that is not known here, so"
            " training and sampling would differ. Please report the architecture"
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
