"""The critic, which predicts the reward still to come. Three kinds share one interface and one layout on disk.

value_head  a head on the policy's own hidden states                value_head.* beside the policy
adapter     a LoRA adapter of its own on the policy's base          critic/adapter_model.*, critic/value_head.*
model       a sequence classifier of its own, with or without LoRA  critic/model.* or adapter_model.*, value_head.*

What lies in critic/ loads with plain transformers and PEFT: an adapter on the policy's base, or a sequence classifier.
"""

import copy
import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapted import SCORE_HEADS, as_classifier, load_adapted_classifier, require_saved_head
from hf_rlhf.models.adapter_files import adapter_base, adapter_folder, hub_folder, read_adapter_weights
from hf_rlhf.models.adapters import (
    CRITIC,
    POLICY,
    adapter_parameters,
    add_trainable_adapter,
    base_of,
    compute_in_base_dtype,
    embedding_rows,
    is_peft_model,
    load_adapter_weights,
    save_adapter,
    saved_names,
    train_in_fp32,
    use_adapter,
)
from hf_rlhf.models.backbone import counted_states, state_width
from hf_rlhf.models.fast.trunk import TrunkStates
from hf_rlhf.models.full_training import train_weights
from hf_rlhf.models.heads import CONFIG_NAME, WEIGHTS_NAME, ValueHead, saved_facts
from hf_rlhf.models.load import load_full_weights, load_sequence_classifier
from hf_rlhf.models.reward_model import load_classifier, require_reward_model, score_head
from hf_rlhf.models.same_base import base_weights, stands_on
from hf_rlhf.models.sharding import below
from hf_rlhf.models.vocabulary import resize_vocabulary
from hf_rlhf.types import Model, Sequences

CriticKind = Literal["value_head", "adapter", "model"]
CRITIC_FOLDER = "critic"


class ValueHeadCritic(nn.Module):
    """A head on the hidden states that the policy computes anyway.

    Args:
        head: the head.
        detach: keep the value loss out of the policy's weights, so that only the head learns from it.
    """

    kind: CriticKind = "value_head"

    def __init__(self, head: ValueHead, *, detach: bool = False):
        super().__init__()
        self.head = head
        self.detach = detach

    def forward(self, policy: Model, sequences: Sequences, hidden: Tensor, entry: TrunkStates | None = None) -> Tensor:
        """Return values `(N,)` in fp32 of the states before the counted tokens; `hidden` `(N, H)` are the policy's.

        `entry` holds what leaves the policy's trunk.
        """
        return self.head(hidden.detach() if self.detach else hidden)

    def trained_parameters(self, policy: Model) -> list[Parameter]:
        """Return every parameter that belongs to the critic and not to the policy."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def saved_names(self) -> set[str]:
        """Return the names of the critic's own parameters that `save_pretrained` writes."""
        return {name for name, _ in self.named_parameters(remove_duplicate=False)}

    def save_pretrained(
        self, policy: Model, folder: str | os.PathLike, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Write the critic below `folder`, where the policy is saved.

        `state_dict` holds the weights of a policy (`model.*`) and critic (`critic.*`) whose own are sharded.
        """
        self._save_head(folder, policy, state_dict)

    def _save_head(self, folder: str | os.PathLike, model: Model, state_dict: dict[str, Tensor] | None) -> None:
        dtype = str(base_of(model).dtype).removeprefix("torch.")
        self.head.save_pretrained(folder, below(state_dict, "critic.head"), critic=self.kind, dtype=dtype)

    def load_weights(self, policy: Model, folder: str | os.PathLike) -> None:
        """Replace the critic's weights by those that `save_pretrained` wrote below `folder`."""
        self.head.load_state_dict(ValueHead.from_pretrained(folder).state_dict())


class AdapterCritic(ValueHeadCritic):
    """An adapter on the policy's frozen base: a second forward pass, but no second base."""

    kind: CriticKind = "adapter"

    def forward(self, policy: Model, sequences: Sequences, hidden: Tensor, entry: TrunkStates | None = None) -> Tensor:
        """Like `ValueHeadCritic.forward`, but read the states of a second pass, with the critic's adapter."""
        with use_adapter(policy, CRITIC), compute_in_base_dtype(policy):
            return self.head(counted_states(base_of(policy), sequences, entry))

    def trained_parameters(self, policy: Model) -> list[Parameter]:
        """Like `ValueHeadCritic.trained_parameters`, with those of the adapter."""
        return [*self.head.parameters(), *adapter_parameters(policy, CRITIC)]

    def save_pretrained(
        self, policy: Model, folder: str | os.PathLike, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Like `ValueHeadCritic.save_pretrained`, but write adapter and head to the critic's own folder."""
        save_adapter(policy, CRITIC, Path(folder) / CRITIC_FOLDER, below(state_dict, "model"))
        self._save_head(Path(folder) / CRITIC_FOLDER, policy, state_dict)

    def load_weights(self, policy: Model, folder: str | os.PathLike) -> None:
        """Like `ValueHeadCritic.load_weights`, with the weights of the adapter."""
        load_adapter_weights(policy, Path(folder) / CRITIC_FOLDER, CRITIC)
        self.head.load_state_dict(ValueHead.from_pretrained(Path(folder) / CRITIC_FOLDER).state_dict())


class ModelCritic(ValueHeadCritic):
    """A separate sequence classifier. A head in fp32 replaces its score layer.

    On disk the score layer has the weight of a linear head, so that the classifier alone returns the values too, except
    for the head's bias.
    """

    kind: CriticKind = "model"

    def __init__(self, classifier: Model, head: ValueHead):
        super().__init__(head)
        self.model = classifier
        _score_layer(classifier).requires_grad_(False)

    def forward(self, policy: Model, sequences: Sequences, hidden: Tensor, entry: TrunkStates | None = None) -> Tensor:
        """Like `ValueHeadCritic.forward`, but read the states of the critic's own model."""
        with compute_in_base_dtype(self.model):
            return self.head(counted_states(base_of(self.model), sequences))

    def saved_names(self) -> set[str]:
        """Like `ValueHeadCritic.saved_names`, with the names that saving the classifier writes."""
        head = {f"head.{name}" for name, _ in self.head.named_parameters()}
        return head | {f"model.{name}" for name in saved_names(self.model)}

    def save_pretrained(
        self, policy: Model, folder: str | os.PathLike, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Like `ValueHeadCritic.save_pretrained`, but write classifier and head to the critic's own folder."""
        folder = Path(folder) / CRITIC_FOLDER
        weights = below(state_dict, "critic.model")
        if self.head.hidden is None and weights is not None:
            score = _trained_score(self.model).weight
            name = next(name for name, parameter in self.model.named_parameters() if parameter is score)
            weights[name] = below(state_dict, "critic.head")["summary.weight"].to(score.dtype)  # pyright: ignore
        elif self.head.hidden is None:
            with torch.no_grad():
                _trained_score(self.model).weight.copy_(self.head.summary.weight)
        if is_peft_model(self.model):
            save_adapter(self.model, self.model.active_adapter, folder, weights)
        else:
            self.model.save_pretrained(folder, state_dict=weights)
        self._save_head(folder, self.model, state_dict)

    def load_weights(self, policy: Model, folder: str | os.PathLike) -> None:
        """Like `ValueHeadCritic.load_weights`, with the weights of the classifier."""
        folder = Path(folder) / CRITIC_FOLDER
        if is_peft_model(self.model):
            load_adapter_weights(self.model, folder, self.model.active_adapter)
        else:
            load_full_weights(self.model, folder)
        self.head.load_state_dict(ValueHead.from_pretrained(folder).state_dict())


Critic = ValueHeadCritic | AdapterCritic | ModelCritic


def build_critic(
    kind: CriticKind,
    policy: Model,
    *,
    start: str | None = None,
    value_model: Model | None = None,
    peft_config: Any = None,
    num_layers_unfrozen: int | None = None,
    mlp_size: int | None = None,
    init_std: float = 0.0,
    detach: bool = False,
) -> Critic:
    """Make the critic of a policy.

    Args:
        kind: see the module.
        policy: the policy's model; an adapter critic is added to it.
        start: a trained reward model, or the folder of an earlier run; by default a fresh head, adapter or model.
        value_model: a sequence classifier to use as the critic of kind "model".
        peft_config, num_layers_unfrozen: the policy's, so that a model of its own is trained as the policy is.
        mlp_size, init_std: of a fresh head, see `ValueHead`.
        detach: see `ValueHeadCritic`.

    Raises `InputError` when kind, policy and start do not fit together.
    """
    if value_model is not None and kind != "model":
        raise InputError(f'critic={kind!r} is invalid with value_model, which is a separate model. Set critic="model"')
    if value_model is not None and start is not None:
        raise InputError(
            f"critic_path={start!r} is invalid with value_model: both say where the critic starts. Give one."
        )
    fresh = ValueHead(state_width(base_of(policy)), mlp_size, init_std)
    folder = None if start is None else run_folder(start)
    if kind == "value_head":
        if folder is not None and not (folder / WEIGHTS_NAME).is_file():
            raise InputError(
                f"critic_path={start!r} is invalid: it has no {WEIGHTS_NAME}, and a value head starts from an earlier"
                " run's value head. To start from a reward model, set critic to adapter or model."
            )
        critic = ValueHeadCritic(fresh if folder is None else ValueHead.from_pretrained(folder), detach=detach)
    elif kind == "adapter":
        critic = _adapter_critic(policy, folder, fresh)
    else:
        critic = _model_critic(policy, folder, value_model, peft_config, num_layers_unfrozen, fresh)
    if mlp_size is not None and critic.head.mlp_size != mlp_size:
        raise InputError(
            f"value_head_mlp_size={mlp_size} is invalid: it sizes a fresh value head, and this critic starts with one"
            " that"
            f" {'is linear' if critic.head.mlp_size is None else f'has {critic.head.mlp_size}'}. Omit it"
        )
    return critic


def require_adapter_for_critic(kind: CriticKind, *, has_adapter: bool) -> None:
    """Raise `InputError` for a critic that is an adapter beside a policy that has none."""
    if kind == "adapter" and not has_adapter:
        raise InputError(
            "critic=adapter is invalid without LoRA on the policy (use_peft, peft_config). Set critic to model."
        )


def saved_critics(folder: Path) -> list[str]:
    """Return the kinds of critic that a run left in `folder`: one, or none."""
    return [
        saved_facts(place)["critic"] for place in (folder, folder / CRITIC_FOLDER) if (place / WEIGHTS_NAME).is_file()
    ]


def run_folder(name_or_path: str) -> Path:
    """Return the local folder of what a run saved, its critic included; any other name as `adapter_folder` does."""
    for facts_of_head in (CONFIG_NAME, f"{CRITIC_FOLDER}/{CONFIG_NAME}"):
        if folder := hub_folder(name_or_path, facts_of_head, ignore_patterns=["checkpoint-*"]):
            return Path(folder)
    return Path(adapter_folder(name_or_path))


def _adapter_critic(policy: Model, folder: Path | None, fresh: ValueHead) -> AdapterCritic:
    from peft import PeftConfig

    require_adapter_for_critic("adapter", has_adapter=is_peft_model(policy))
    if folder is None:
        add_trainable_adapter(policy, CRITIC, _fresh_config(policy.peft_config[POLICY]))
        return AdapterCritic(fresh)
    folder = _inner(folder)
    base = adapter_base(folder)
    if base is None or not stands_on(folder, policy):
        raise InputError(
            f"critic_path={str(folder)!r} is {'no adapter' if base is None else f'an adapter of {base!r}'}, and"
            f' critic="adapter" shares the policy\'s base {base_of(policy).config._name_or_path!r}'
            f'{"" if base is None else ", which differs or has other weights by now"}. Take critic="model"'
        )
    config: Any = PeftConfig.from_pretrained(str(folder))
    own = [name for name in config.modules_to_save or () if name not in SCORE_HEADS]
    add_trainable_adapter(policy, CRITIC, _fresh_config(config, modules_to_save=own or None), _adapter_weights(folder))
    return AdapterCritic(_saved_head(folder) or ValueHead.from_score(score_head(folder)))


def _model_critic(
    policy: Model,
    folder: Path | None,
    value_model: Model | None,
    peft_config: Any,
    num_layers_unfrozen: int | None,
    fresh: ValueHead,
) -> ModelCritic:
    dtype = base_of(policy).dtype
    head: ValueHead | None = None  # the model's score layer
    classifier: Model = value_model
    if value_model is not None:
        require_reward_model(value_model, "value_model")
    elif folder is not None:
        classifier, head = _saved_classifier(_inner(folder), dtype)
    elif base_of(policy).config._name_or_path:
        classifier, head = _classifier_on_base_of(policy), fresh
    else:
        raise InputError(
            "critic=model is invalid: it starts from the base that the policy was loaded from, and this policy was made"
            " in memory. Give critic_path or value_model."
        )
    _score_layer(classifier)
    classifier = _made_trainable(classifier, peft_config, num_layers_unfrozen)
    if head is None:
        score = _trained_score(classifier)
        head = ValueHead.from_score(score.weight.detach().float(), getattr(score, "bias", None))
    return ModelCritic(classifier, head)


def _made_trainable(classifier: Model, peft_config: Any, num_layers_unfrozen: int | None) -> Model:
    """Make the classifier trainable as the policy is: by its adapter, by a fresh one, or as a whole."""
    from peft import get_peft_model

    if is_peft_model(classifier):
        for parameter in adapter_parameters(classifier, classifier.active_adapter):
            parameter.requires_grad_(True)
        return train_in_fp32(classifier)
    if peft_config is not None:
        fresh = as_classifier(_fresh_config(peft_config), classifier)
        return train_in_fp32(get_peft_model(classifier, fresh, adapter_name=CRITIC))
    return train_weights(classifier, "the critic's model (value_model, critic_path)", num_layers_unfrozen)


def _classifier_on_base_of(policy: Model) -> Model:
    """Make a classifier with a fresh head on a copy of the policy's base, whatever name the policy has now."""
    base = base_of(policy)
    name = base.config._name_or_path
    classifier = load_sequence_classifier(adapter_base(name) or name, dtype=base.dtype)
    if getattr(base, "is_quantized", False):
        return classifier
    resize_vocabulary(classifier, embedding_rows(base))
    copies = base_weights(classifier)
    with torch.no_grad():
        for weight_name, weight in base_weights(policy).items():
            copies[weight_name].copy_(weight)
    return classifier


def _saved_classifier(folder: Path, dtype: torch.dtype) -> tuple[Model, ValueHead | None]:
    """Load a classifier that a run or a reward model left in `folder`, and its head if that is no score layer."""
    head = _saved_head(folder)
    if adapter_base(folder) is None:
        load = load_sequence_classifier if head else load_classifier  # which wants a trained score layer
        return load(str(folder), dtype=dtype), head
    if head is None:
        require_saved_head(folder)
    return load_adapted_classifier(folder, adapter_name=CRITIC, dtype=dtype), head


def _adapter_weights(folder: Path) -> dict[str, Tensor]:
    weights = read_adapter_weights(folder)
    return {key: tensor for key, tensor in weights.items() if key.split(".")[2] not in SCORE_HEADS}


def _fresh_config(config: Any, modules_to_save: list[str] | None = None) -> Any:
    """Return a copy of an adapter's config to train a backbone with, and `modules_to_save` besides."""
    config = copy.deepcopy(config)
    config.modules_to_save = modules_to_save
    config.task_type = None
    config.inference_mode = False
    if isinstance(getattr(config, "trainable_token_indices", None), dict):  # no head is trained with a critic
        indices = config.trainable_token_indices
        config.trainable_token_indices = {name: rows for name, rows in indices.items() if name != "lm_head"} or None
    return config


def _inner(folder: Path) -> Path:
    """Return the folder of a critic of its own that a run left in `folder`, or `folder` itself."""
    return folder / CRITIC_FOLDER if (folder / CRITIC_FOLDER).is_dir() else folder


def _saved_head(folder: Path) -> ValueHead | None:
    return ValueHead.from_pretrained(folder) if (folder / WEIGHTS_NAME).is_file() else None


def _score_layer(classifier: Model) -> Any:
    """Return the last layer of a sequence classifier, in PEFT's wrapper when there is one."""
    layer = getattr(base_of(classifier), "score", None)
    if layer is None:
        raise InputError(
            'a critic of kind "model" is a decoder with a score layer (AutoModelForSequenceClassification), and'
            f" {type(base_of(classifier)).__name__} has none"
        )
    return layer


def _trained_score(classifier: Model) -> Any:
    """Return the linear layer that scores."""
    layer = _score_layer(classifier)
    return layer.modules_to_save[classifier.active_adapter] if hasattr(layer, "modules_to_save") else layer
