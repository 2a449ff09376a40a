"""The policy, its critic and its reference as one module, so that one wrapper (DDP, FSDP) holds all of them."""

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapter_kinds import require_trainable_adapter
from hf_rlhf.models.adapters import (
    POLICY,
    REFERENCE,
    base_of,
    compute_in_base_dtype,
    copy_adapter,
    is_peft_model,
    load_adapter_weights,
    overwrite_adapter,
    same_adapter_in_recomputation,
    save_adapter,
    saved_names,
    train_in_fp32,
    use_adapter,
)
from hf_rlhf.models.advantage_head import AdvantageHead
from hf_rlhf.models.backbone import block_names, counted_ids, counted_states, disable_dropout, logits_head, state_width
from hf_rlhf.models.critics import Critic, ModelCritic, ValueHeadCritic
from hf_rlhf.models.fast.trunk import Trunk, TrunkStates
from hf_rlhf.models.full_training import require_no_adapter, train_weights
from hf_rlhf.models.heads import ValueHead
from hf_rlhf.models.load import load_full_weights, require_causal_lm
from hf_rlhf.models.lora_targets import require_known_layers
from hf_rlhf.models.sharding import below
from hf_rlhf.ops.logprobs import token_kl, token_logprobs
from hf_rlhf.types import Model, Sequences

REFERENCE_FOLDER = "reference"


class PolicyOutput(NamedTuple):
    """Per-token results, zero where the mask is False; None where they were not asked for."""

    logprobs: Tensor  # (B, T) fp32
    values: Tensor | None = None  # (B, T) fp32, of the state before each token
    entropy: Tensor | None = None  # (B, T) fp32
    reference_logprobs: Tensor | None = None  # (B, T) fp32, without gradient
    kl: Tensor | None = None  # (B, T) fp32, exact KL(policy || reference) over the vocabulary
    text_logprobs: Tensor | None = None  # (B', T') fp32, of the texts given besides
    advantages: Tensor | None = None  # (B, T) fp32, of the sampled tokens, by an advantage head


class PolicyWithValue(nn.Module):
    """A causal LM with a critic, and the frozen reference it is held to.

    The reference is, in this order: `ref_model` when given; the frozen adapter `reference` when the policy started
    from an adapter (or the reference is to follow it); the base with its adapters off when the policy is a fresh
    adapter; else a frozen copy of what is trained, which shares the frozen weights with the policy. `copy_frozen`
    copies those too, for FSDP, which cuts the weights of each block for itself.
    """

    def __init__(
        self,
        model: Model,
        critic: Critic | None = None,
        ref_model: Model | None = None,
        *,
        copy_frozen: bool = False,
    ):
        super().__init__()
        self.model = model
        self.config = base_of(model).config
        self.critic = critic or ValueHeadCritic(ValueHead(state_width(base_of(model))))
        self.advantage_head: AdvantageHead | None = None  # whoever estimates advantages by one gives it
        self.trunk: Trunk | None = None  # of the model, whose states `forward` may be given
        self.reference_has_trunk = ref_model is None  # or it is unknown what that one shares
        if ref_model is None and not is_peft_model(model):
            shared = {id(weight): weight for weight in model.parameters() if not (weight.requires_grad or copy_frozen)}
            ref_model = copy.deepcopy(model, shared)  # which takes what it is given as copied already
        self._dropout_in_configs: list[tuple[Any, str, float]] = []
        self.reference_model = None if ref_model is None else ref_model.requires_grad_(False).eval()
        if is_peft_model(model) or is_peft_model(getattr(self.critic, "model", None)):
            from hf_rlhf.models.fast.fused_lora import fuse_lora  # imports PEFT

            fuse_lora(self)

    def forward(
        self,
        sequences: Sequences,
        *,
        temperature: float = 1.0,
        values: bool = True,
        entropy: bool = False,
        reference: bool = False,
        full_kl: bool = False,
        texts: Sequences | None = None,
        trunk_states: Sequence[Tensor] | None = None,
    ) -> PolicyOutput:
        """Score the counted tokens of `sequences`.

        Everything of one update goes through one call, since DDP counts calls: `texts` are sequences besides, scored
        by the policy at temperature 1. With `trunk_states` of `sequences` (see the method) the passes of all roles that
        have the trunk begin above it.
        """
        settings = {
            "temperature": temperature,
            "support": sequences.counted_support(),
            "vocab_size": self.config.get_text_config().vocab_size,
        }
        ids = counted_ids(sequences)
        entry = None
        if trunk_states is not None:
            assert self.trunk is not None
            entry = TrunkStates(self.trunk, trunk_states)
        with compute_in_base_dtype(self.model):
            hidden = counted_states(base_of(self.model), sequences, entry)  # (N, H)
            head = logits_head(base_of(self.model))
            scored = token_logprobs(hidden, ids, head, entropy=entropy, **settings)
        kl = reference_logprobs = text_logprobs = None
        if reference or full_kl:
            reference_logprobs, reference_hidden = self._by_reference(
                sequences, ids, entry, logprobs=reference, **settings
            )
            if full_kl:
                with compute_in_base_dtype(self.model):
                    kl = token_kl(hidden, head, reference_hidden, self._reference_head, **settings)
        if texts is not None:
            with compute_in_base_dtype(self.model):
                states = counted_states(base_of(self.model), texts)
                text_logprobs = token_logprobs(
                    states, counted_ids(texts), head, vocab_size=settings["vocab_size"]
                ).logprobs
        state_values = self.critic(self.model, sequences, hidden, entry) if values else None
        advantages = None
        if values and self.advantage_head is not None:
            with compute_in_base_dtype(self.model):
                advantages = self.advantage_head(self.model, sequences, hidden, temperature)
        return PolicyOutput(
            logprobs=_as_columns(scored.logprobs, sequences),
            values=None if state_values is None else _as_columns(state_values, sequences),
            entropy=None if scored.entropy is None else _as_columns(scored.entropy, sequences),
            reference_logprobs=None if reference_logprobs is None else _as_columns(reference_logprobs, sequences),
            kl=None if kl is None else _as_columns(kl, sequences),
            text_logprobs=None if text_logprobs is None or texts is None else _as_columns(text_logprobs, texts),
            advantages=None if advantages is None else _as_columns(advantages, sequences),
        )

    @torch.no_grad()
    def trunk_states(self, sequences: Sequences) -> list[Tensor]:
        """Compute the states that leave the trunk: `(L_b, H)` of all tokens of each sequence, in the base's dtype."""
        assert self.trunk is not None
        with compute_in_base_dtype(self.model):
            return self.trunk.states(base_of(self.model), sequences)

    @torch.no_grad()
    def _by_reference(
        self, sequences: Sequences, ids: Tensor, entry: TrunkStates | None, *, logprobs: bool, **settings: Any
    ) -> tuple[Tensor | None, Tensor]:
        """Return the reference's states `(N, H)` and, if wanted, its log-probabilities `(N,)`, of the counted tokens.

        The log-probabilities come first.
        """
        with self.reference() as model:
            hidden = counted_states(base_of(model), sequences, entry if self.reference_has_trunk else None)
            scored = token_logprobs(hidden, ids, logits_head(base_of(model)), **settings).logprobs if logprobs else None
        return scored, hidden

    @contextmanager
    def reference(self) -> Iterator[Model]:
        """Switch to the reference model for the block."""
        if self.reference_model is not None:
            self.reference_model.eval()  # Trainer puts the whole module into train mode
            device = next(self.reference_model.parameters()).device.type
            with torch.autocast(device, enabled=False), compute_in_base_dtype(self.reference_model):
                yield self.reference_model
            return
        name = REFERENCE if REFERENCE in self.model.peft_config else None
        with use_adapter(self.model, name, inference=True), compute_in_base_dtype(self.model):
            yield self.model

    def _reference_head(self, hidden: Tensor) -> Tensor:
        with self.reference() as model:
            return logits_head(base_of(model))(hidden)

    def refresh_reference(self) -> None:
        """Set the reference to the current policy."""
        if self.reference_model is not None:
            self.reference_model.load_state_dict(self.model.state_dict())
        else:
            overwrite_adapter(self.model, POLICY, REFERENCE)

    def weights_in_reference(self) -> set[Parameter]:
        """Return the policy's weights that its reference model shares."""
        if self.reference_model is None:
            return set()
        return {*self.model.parameters()} & {*self.reference_model.parameters()}

    def separate_reference(self) -> None:
        """Copy those shared weights that are trained by now for the reference, so that it stays as it is."""
        thawed = [weight for weight in self.weights_in_reference() if weight.requires_grad]
        if self.reference_model is None or not thawed:
            return
        copies = {weight: Parameter(weight.detach().clone(), requires_grad=False) for weight in thawed}
        for module in self.reference_model.modules():
            for name, weight in module._parameters.items():
                module._parameters[name] = copies.get(weight, weight)

    @property
    def value_head(self) -> ValueHead:
        """The critic's head."""
        return self.critic.head

    def critic_parameters(self) -> list[Parameter]:
        """Return the trained parameters that belong to the critic alone, with those of an advantage head."""
        fitted = [] if self.advantage_head is None else [*self.advantage_head.parameters()]
        return [*self.critic.trained_parameters(self.model), *fitted]

    def policy_parameters(self) -> list[Parameter]:
        """Return the trained parameters that belong to the policy."""
        critics = {id(parameter) for parameter in self.critic_parameters()}
        return [
            parameter for parameter in self.parameters() if parameter.requires_grad and id(parameter) not in critics
        ]

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **kwargs: Any) -> None:
        """Recompute activations in the backward pass; called by `transformers.Trainer`."""
        given = gradient_checkpointing_kwargs or {}
        if given.get("use_reentrant"):
            raise InputError(
                'gradient_checkpointing_kwargs={"use_reentrant": true} loses the adapter that a block ran with. Leave'
                " it out or set it to false"
            )
        for model in self._trained_models():
            settings: dict[str, Any] = {"use_reentrant": False, **given}
            if is_peft_model(model):
                settings["context_fn"] = same_adapter_in_recomputation(model)
            base_of(model).gradient_checkpointing_enable(
                gradient_checkpointing_kwargs=settings,
                **kwargs,  # newer versions say here which layers, and where activations go
            )
            if is_peft_model(model):  # otherwise no checkpointed block has an input that needs a gradient
                base_of(model).enable_input_require_grads()

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict | None = None, **kwargs: Any
    ) -> None:
        """Call `gradient_checkpointing_enable`, under the name that transformers uses from version 6 on."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, **kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """Undo `gradient_checkpointing_enable`."""
        for model in self._trained_models():
            base_of(model).gradient_checkpointing_disable()

    def _trained_models(self) -> list[Model]:
        return [self.model, self.critic.model] if isinstance(self.critic, ModelCritic) else [self.model]

    def transformers_models(self) -> list[Model]:
        """Return the models of all roles, without PEFT's wrapper."""
        models = [*self._trained_models(), *([] if self.reference_model is None else [self.reference_model])]
        return [base_of(model) for model in models]

    @property
    def _no_split_modules(self) -> list[str]:
        """Names of the classes of the models' blocks.

        accelerate looks under these names for the blocks that FSDP shards one by one.
        """
        return sorted({name for model in self.transformers_models() for name in block_names(model)})

    def disable_dropout(self) -> None:
        """Switch dropout off, everywhere; what is saved keeps the probabilities it had."""
        self._dropout_in_configs = disable_dropout(self)

    @contextmanager
    def _own_dropout(self) -> Iterator[None]:
        for config, name, value in self._dropout_in_configs:
            setattr(config, name, value)
        try:
            yield
        finally:
            for config, name, _ in self._dropout_in_configs:
                setattr(config, name, 0.0)

    def saved_names(self, *, reference: bool) -> set[str]:
        """Return the names of the parameters that saving writes, those of the `reference` too if it is saved."""
        names = {f"model.{name}" for name in saved_names(self.model)}
        names |= {f"critic.{name}" for name in self.critic.saved_names()}
        if reference and self.reference_model is not None:
            names |= {f"reference_model.{name}" for name in saved_names(self.reference_model)}
        return names

    def save_pretrained(self, folder: str | os.PathLike, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write what plain transformers + peft load: the policy's adapter (or full model), and the critic.

        `state_dict` holds the weights `saved_names` of a policy whose own are sharded.
        """
        with self._own_dropout():
            if is_peft_model(self.model):
                save_adapter(self.model, POLICY, folder, below(state_dict, "model"))
            else:
                self.model.save_pretrained(folder, state_dict=below(state_dict, "model"))
            self.critic.save_pretrained(self.model, folder, state_dict)
            if self.advantage_head is not None:
                self.advantage_head.save_pretrained(folder)

    def save_reference(self, folder: str | os.PathLike, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the reference below `folder`, as a checkpoint of a run that refreshes it needs."""
        folder = Path(folder) / REFERENCE_FOLDER
        if self.reference_model is not None:
            self.reference_model.save_pretrained(folder, state_dict=below(state_dict, "reference_model"))
        else:
            save_adapter(self.model, REFERENCE, folder, below(state_dict, "model"))

    def load_weights(self, folder: str | os.PathLike) -> None:
        """Replace the trained weights by those in `folder`, and the reference if it was saved; for resuming."""
        self.separate_reference()  # before weights that it shares, and that are trained by now, are loaded
        if is_peft_model(self.model):
            _load_into(self.model, folder, POLICY)
        else:
            _load_into(self.model, folder)
        self.critic.load_weights(self.model, folder)
        if self.advantage_head is not None:
            self.advantage_head.load_weights(folder)
        reference = Path(folder) / REFERENCE_FOLDER
        if reference.is_dir() and self.reference_model is not None:
            _load_into(self.reference_model, reference)
        elif reference.is_dir():
            _load_into(self.model, reference, REFERENCE)


def _load_into(model: Model, folder: str | os.PathLike, adapter: str | None = None) -> None:
    if adapter is None:
        load_full_weights(model, folder)
    else:
        load_adapter_weights(model, folder, adapter)


def _as_columns(flat: Tensor, sequences: Sequences) -> Tensor:
    """Lay counted tokens `(N,)` out as `(B, T)`."""
    return flat.new_zeros(sequences.mask.shape).index_put(sequences.counted, flat)


def wrap_policy(
    model: Model,
    peft_config=None,
    *,
    num_layers_unfrozen: int | None = None,
    keep_reference: bool = False,
    own_reference: bool = False,
) -> Model:
    """Make `model` trainable as a policy: full fine-tuning, a fresh LoRA adapter, or continuing from a PEFT model.

    For full fine-tuning, and its `num_layers_unfrozen`, see `train_weights`.
    The active adapter of a `PeftModel` is the policy's start. It becomes the adapter `policy`, with a frozen copy
    `reference` unless the reference is a model (`own_reference`); under its former name it is gone, so that no third
    copy takes memory, and `save_pretrained` of the `PeftModel` cannot write the untrained start where the trained
    policy is looked for. With `keep_reference` a fresh adapter gets such a copy too, for a reference that follows the
    policy. Raises `InputError` for a `PeftModel` together with `peft_config`, for adapters that are not LoRA-like, and
    for an adapter together with `num_layers_unfrozen`.
    """
    from peft import get_peft_model

    require_no_adapter(num_layers_unfrozen, has_adapter=peft_config is not None or is_peft_model(model))
    if getattr(base_of(model).config, "output_router_logits", False):
        base_of(model).config.output_router_logits = False  # an auxiliary loss that sampling cannot compute
    require_causal_lm(model, f"the model, a {type(base_of(model)).__name__},")
    if is_peft_model(model):
        if peft_config is not None:
            raise InputError("the model is a PeftModel already: give either the PeftModel or a peft_config, not both")
        start = model.active_adapter
        require_trainable_adapter(model.peft_config[start])
        if start != POLICY:
            copy_adapter(model, start, POLICY)
            model.set_adapter(POLICY)
            model.delete_adapter(start)
        if not own_reference:
            copy_adapter(model, POLICY, REFERENCE)
        model.set_adapter(POLICY)
        return train_in_fp32(model)
    if getattr(model, "peft_config", None):
        raise InputError(
            "the model carries an adapter that from_pretrained injected, so its base cannot be told apart. Load the"
            " base and wrap it with peft.PeftModel.from_pretrained(base, adapter)"
        )
    if peft_config is None:
        return train_weights(model, "the model", num_layers_unfrozen)
    require_trainable_adapter(peft_config)
    require_known_layers(model, peft_config)
    wrapped = get_peft_model(model, peft_config, adapter_name=POLICY)
    if keep_reference:
        copy_adapter(wrapped, POLICY, REFERENCE)
    return train_in_fp32(wrapped)
