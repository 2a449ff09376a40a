"""The policy, its value head and its reference as one module, so that one wrapper (DDP, FSDP) holds all of them."""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import (
    POLICY,
    REFERENCE,
    base_of,
    compute_in_base_dtype,
    copy_adapter,
    is_peft_model,
    save_adapter,
    use_adapter,
)
from hf_rlhf.models.heads import ValueHead
from hf_rlhf.ops.logprobs import token_logprobs
from hf_rlhf.types import Model, Sequences


class PolicyOutput(NamedTuple):
    """Per-token results, zero where the mask is False."""

    logprobs: Tensor  # (B, T) fp32
    values: Tensor | None  # (B, T) fp32, of the state before each token
    entropy: Tensor | None  # (B, T) fp32


class PolicyWithValue(nn.Module):
    """A causal LM with a value head, and the frozen reference it is held to.

    The reference is, in this order: `ref_model` when given; the frozen adapter `reference` when the policy started
    from an adapter; the base with its adapters off when the policy is a fresh adapter; else a frozen copy.
    """

    def __init__(self, model: Model, value_head: ValueHead | None = None, ref_model: Model | None = None):
        super().__init__()
        self.model = model
        backbone = base_of(model)
        self.config = backbone.config
        self.value_head = value_head or ValueHead(self.config.get_text_config().hidden_size)
        if ref_model is None and not is_peft_model(model):
            ref_model = copy.deepcopy(model)
        self.reference_model = None if ref_model is None else ref_model.requires_grad_(False).eval()

    def forward(
        self,
        sequences: Sequences,
        *,
        temperature: float = 1.0,
        reference: bool = False,
        entropy: bool = False,
    ) -> PolicyOutput:
        """Score the counted tokens of `sequences` under the policy, or under its reference (which has no values)."""
        with self._reference() if reference else nullcontext(self.model) as model, compute_in_base_dtype(model):
            causal_lm = base_of(model)
            rows, columns = sequences.counted
            states = backbone_states(causal_lm, sequences)  # (B, L, H)
            positions = sequences.prompt_lengths[rows] + columns
            # One contiguous (N, H) matrix: a slice of `states` would send lm_head down a path that copies its weight.
            hidden = states[rows, positions - 1]
            scored = token_logprobs(
                hidden,
                sequences.input_ids[rows, positions],
                logits_head(causal_lm),
                temperature=temperature,
                support=sequences.counted_support(),
                entropy=entropy,
                vocab_size=self.config.get_text_config().vocab_size,
            )
            values = None if reference else self.value_head(hidden)

        def as_columns(flat: Tensor) -> Tensor:
            return flat.new_zeros(sequences.mask.shape).index_put((rows, columns), flat)

        return PolicyOutput(
            as_columns(scored.logprobs),
            None if values is None else as_columns(values),
            None if scored.entropy is None else as_columns(scored.entropy),
        )

    @contextmanager
    def _reference(self) -> Iterator[Model]:
        if self.reference_model is not None:
            self.reference_model.eval()  # Trainer puts the whole module into train mode
            yield self.reference_model
            return
        name = REFERENCE if REFERENCE in self.model.peft_config else None
        with use_adapter(self.model, name):
            self.model.eval()
            yield self.model

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the backbone computes."""
        return base_of(self.model).dtype

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **kwargs: Any) -> None:
        """Recompute activations in the backward pass; called by `transformers.Trainer`."""
        base_of(self.model).gradient_checkpointing_enable(
            gradient_checkpointing_kwargs=gradient_checkpointing_kwargs,
            **kwargs,  # newer versions say here which layers, and where activations go
        )
        if is_peft_model(self.model):  # otherwise no checkpointed block has an input that needs a gradient
            base_of(self.model).enable_input_require_grads()

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict | None = None, **kwargs: Any
    ) -> None:
        """The name by which transformers calls it from version 6 on."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, **kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """Undo `gradient_checkpointing_enable`."""
        base_of(self.model).gradient_checkpointing_disable()

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write what plain transformers + peft load: the policy's adapter (or full model), and the value head."""
        if is_peft_model(self.model):
            save_adapter(self.model, POLICY, folder)
        else:
            self.model.save_pretrained(folder)
        self.value_head.save_pretrained(folder)

    def load_weights(self, folder: str | os.PathLike) -> None:
        """Replace the policy's trained weights and the value head by those in `folder`, for resuming."""
        from safetensors.torch import load_file

        file = Path(folder) / ("adapter_model.safetensors" if is_peft_model(self.model) else "model.safetensors")
        if not file.is_file():
            raise InputError(f"{folder}: no {file.name} to resume from")
        if is_peft_model(self.model):
            from peft import set_peft_model_state_dict

            set_peft_model_state_dict(self.model, load_file(file), adapter_name=POLICY)
        else:
            self.model.load_state_dict(load_file(file), strict=False)  # tied weights are stored once
        self.value_head.load_state_dict(ValueHead.from_pretrained(folder).state_dict())


def wrap_policy(model: Model, peft_config=None) -> Model:
    """Make `model` trainable as a policy: full fine-tuning, a fresh LoRA adapter, or going on from a PEFT model.

    A `PeftModel` keeps its active adapter as the policy's start, and a frozen copy of it becomes the reference.
    Raises `InputError` for a `PeftModel` together with `peft_config`, and for adapters that are not LoRA-like.
    """
    from peft import get_peft_model

    if is_peft_model(model):
        if peft_config is not None:
            raise InputError("the model is a PeftModel already: give either the PeftModel or a peft_config, not both")
        start = model.active_adapter
        if start != POLICY:
            copy_adapter(model, start, POLICY)
        copy_adapter(model, start, REFERENCE)
        model.set_adapter(POLICY)
        return model
    if getattr(model, "peft_config", None):
        raise InputError(
            "the model carries an adapter that from_pretrained injected, so its base cannot be told apart; load the base"
            " and wrap it with peft.PeftModel.from_pretrained(base, adapter)"
        )
    if peft_config is None:
        if model.dtype != torch.float32:
            raise InputError(
                f"full fine-tuning in {model.dtype} loses almost every update to rounding; load the model with dtype"
                " float32, or train LoRA adapters (use_peft, peft_config)"
            )
        return model.requires_grad_(True)
    if peft_config.is_prompt_learning:
        raise InputError(
            f"peft_type={peft_config.peft_type.value} changes the prompt, not the weights, and is not supported; "
            "use LoRA (also with use_dora or use_rslora)"
        )
    return get_peft_model(model, peft_config, adapter_name=POLICY)


def disable_dropout(model: Model) -> None:
    """Set every dropout probability to 0, those of attention included."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "attn_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def backbone_states(causal_lm: Model, sequences: Sequences) -> Tensor:
    """Last hidden states `(B, L, H)`, after the final norm and before the head."""
    backbone = causal_lm.base_model
    return backbone(
        input_ids=sequences.input_ids, attention_mask=sequences.attention_mask.long(), use_cache=False
    ).last_hidden_state


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
