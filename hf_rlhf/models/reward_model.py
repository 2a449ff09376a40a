"""Reward models: an adapter and score head on the policy's own backbone, or a separate sequence classifier.

Both map token ids to one reward for each sequence, read at the last real token.
"""

import difflib
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_rlhf.errors import InputError, require_path_name
from hf_rlhf.models.adapted import load_adapted, require_saved_head
from hf_rlhf.models.adapter_files import adapter_base, adapter_folder
from hf_rlhf.models.adapters import (
    REWARD,
    base_of,
    compute_in_base_dtype,
    is_peft_model,
    load_frozen_adapter,
    use_adapter,
)
from hf_rlhf.models.backbone import states_at
from hf_rlhf.models.fast.trunk import TrunkStates
from hf_rlhf.models.fingerprints import adapter_settings, model_fingerprint
from hf_rlhf.models.load import load_sequence_classifier, load_tokenizer
from hf_rlhf.models.precision import NATIVE
from hf_rlhf.models.same_base import stands_on
from hf_rlhf.types import Model


class SharedRewardModel:
    """The adapter `name` and its score head on a backbone that belongs to a policy, without a second backbone.

    Not a module: its weights live in the policy's PEFT model and are saved with neither.

    Attributes:
        trunk_states: `(input_ids (B, L), attention_mask (B, L)) ->` what leaves the policy's trunk, from which the pass
            of that batch begins; None for a pass of all blocks.
    """

    def __init__(self, model: Model, folder: str | os.PathLike, pad_token_id: int | None, name: str = REWARD):
        head = score_head(folder)
        load_frozen_adapter(model, folder, name)
        self.model = model
        self.name = name
        self.head = head
        self.pad_token_id = pad_token_id
        self.trunk_states: Callable[[Tensor, Tensor], TrunkStates | None] = lambda input_ids, attention_mask: None

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return rewards `(B,)` in fp32 of right-padded `(B, L)` sequences."""
        entry = self.trunk_states(input_ids, attention_mask)
        with use_adapter(self.model, self.name, inference=True), compute_in_base_dtype(self.model):
            last = _last_states(base_of(self.model), input_ids, attention_mask, self.pad_token_id, entry)
        return last.float() @ self.head.to(last.device).T[:, 0]

    def fingerprint(self, tokenizer) -> str | None:
        """Return a digest of base, adapter, head and tokenizer; None where the base is trained, and changes."""
        others = set(self.model.peft_config) - {self.name}
        own = {
            name: tensor
            for name, tensor in self.model.state_dict(keep_vars=True).items()
            if not others & set(name.split("."))
        }
        if any(tensor.requires_grad for tensor in own.values()):
            return None
        settings = [adapter_settings(self.model.peft_config[self.name]), str(self.pad_token_id)]
        return model_fingerprint(base_of(self.model), tokenizer, own | {"head": self.head}, settings)


class SeparateRewardModel:
    """A separate sequence classifier with its own tokenizer."""

    def __init__(self, model: Model):
        self.model = model.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return rewards `(B,)` in fp32 of right-padded `(B, L)` sequences."""
        classifier = base_of(self.model)
        with compute_in_base_dtype(self.model):
            if hasattr(classifier, "score"):  # a decoder: its own forward refuses a batch when it knows no padding id
                pad_token_id = classifier.config.get_text_config().pad_token_id
                logits = classifier.score(_last_states(classifier, input_ids, attention_mask, pad_token_id))
            else:
                logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits[:, 0].float()

    def fingerprint(self, tokenizer) -> str:
        """Return a digest of weights and tokenizer."""
        adapters = getattr(self.model, "peft_config", {})
        settings = [adapter_settings(each) for each in adapters.values()]
        weights = self.model.state_dict()
        replaced = {name.partition(".modules_to_save.")[0] for name in weights if ".modules_to_save." in name}
        own = {  # without the random head that the adapter's own replaces
            name: tensor for name, tensor in weights.items() if name.partition(".original_module.")[0] not in replaced
        }
        return model_fingerprint(base_of(self.model), tokenizer, own, settings)


class AdapterRewardModel(SeparateRewardModel):
    """The adapter `name` of a classifier that holds several on one base, as the members of an ensemble are."""

    def __init__(self, model: Model, name: str):
        super().__init__(model)
        self.name = name

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return scores `(B,)` in fp32 of right-padded `(B, L)` sequences."""
        with use_adapter(self.model, self.name, inference=True):
            return super().__call__(input_ids, attention_mask)


def load_reward_adapters(
    folders: Sequence[str], *, policy: Model | None = None, dtype: str | torch.dtype = NATIVE, **kwargs: Any
) -> list[SharedRewardModel] | list[AdapterRewardModel]:
    """Load reward adapters that were trained on the same base, each under a name of its own.

    They become adapters of `policy` where all stand on its base, as in `load_reward_model`; otherwise of one base of
    their own, in `dtype` and with `kwargs` for `from_pretrained`. Raises `InputError`.
    """
    for folder in folders:
        require_saved_head(folder)
    pad_id = load_reward_tokenizer(folders[0], trust_remote_code=kwargs.get("trust_remote_code", False)).pad_token_id
    if policy is not None and is_peft_model(policy) and all(stands_on(folder, policy) for folder in folders):
        members = [SharedRewardModel(policy, folder, pad_id, free_name(policy)) for folder in folders]
        _keep_in_base_dtype(policy, [member.name for member in members])
        return members
    model = load_adapted(load_sequence_classifier, folders[0], adapter_name=REWARD, dtype=dtype, **kwargs)
    base_of(model).config.get_text_config().pad_token_id = pad_id
    names = [REWARD]
    for folder in folders[1:]:
        names.append(free_name(model))
        load_frozen_adapter(model, folder, names[-1])
    _keep_in_base_dtype(model, names)
    return [AdapterRewardModel(model, name) for name in names]


def _keep_in_base_dtype(model: Model, names: Sequence[str]) -> None:
    """Keep the matrices of frozen adapters in the dtype that `compute_in_base_dtype` casts them to in every pass.

    On a bf16 base it halves what a member takes, and changes no score.
    """
    dtype = base_of(model).dtype
    if dtype not in (torch.bfloat16, torch.float16):
        return
    for name, parameter in model.named_parameters():
        parts = set(name.split("."))
        if not parts.isdisjoint(names) and "modules_to_save" not in parts:
            parameter.data = parameter.data.to(dtype)


def free_name(model: Model | None) -> str:
    """Return the first of `reward`, `reward_1`, `reward_2`, ... that names no adapter of `model`."""
    taken = set(getattr(model, "peft_config", None) or ())
    names = (REWARD if number == 0 else f"{REWARD}_{number}" for number in itertools.count())
    return next(name for name in names if name not in taken)


def load_reward_model(
    name_or_path: str,
    *,
    policy: Model | None = None,
    name: str = REWARD,
    dtype: str | torch.dtype = NATIVE,
    **kwargs: Any,
):
    """Load a trained reward model; returns `(model, tokenizer)`.

    A LoRA reward model becomes an adapter on the policy's backbone when `policy` is a `PeftModel` on the base that the
    reward model was trained on (`stands_on`); anything else is loaded as a model of its own, in `dtype` and with
    `kwargs` for `from_pretrained`.

    Raises `InputError` when there is no such model, when it has more than one label, or when its score head was never
    trained (a causal LM given by mistake, or an adapter saved without `modules_to_save=["score"]`).
    """
    tokenizer = load_reward_tokenizer(name_or_path, trust_remote_code=kwargs.get("trust_remote_code", False))
    name_or_path = adapter_folder(name_or_path)
    base = adapter_base(name_or_path)
    if base is None:
        return SeparateRewardModel(load_classifier(name_or_path, dtype, **kwargs)), tokenizer
    require_saved_head(name_or_path)
    if policy is not None and is_peft_model(policy) and stands_on(name_or_path, policy):
        return SharedRewardModel(policy, name_or_path, tokenizer.pad_token_id, name), tokenizer
    classifier = load_adapted(load_sequence_classifier, name_or_path, dtype=dtype, **kwargs)
    base_of(classifier).config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return SeparateRewardModel(classifier), tokenizer


def load_reward_tokenizer(name_or_path: str, **kwargs: Any):
    """Load the tokenizer of a trained reward model, its padding as it was trained. Raises `InputError`."""
    _require_there(name_or_path)
    return load_tokenizer(adapter_folder(name_or_path), distinct_padding=False, **kwargs)


def _require_there(name_or_path: str) -> None:
    """Raise `InputError` for what looks like a path and is none; a Hub name is `owner/name`."""
    require_path_name(name_or_path, "reward model")
    path = Path(name_or_path)
    if path.is_dir():
        return
    if name_or_path.startswith("embedded:"):
        raise InputError(
            f"reward model {name_or_path!r} is invalid: an embedded model writes text, and gives no rewards. Train a"
            " reward model on it first, with hf-rlhf reward."
        )
    if path.is_absolute() or path.parent.is_dir() or name_or_path.count("/") != 1:
        beside = [folder.name for folder in path.parent.iterdir() if folder.is_dir()] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.75)
        hint = f"; did you mean {str(path.parent / close[0])!r}?" if close else ""
        if not hint and path.name == name_or_path:
            hint = "; a function is named module:name or file.py:name"
        raise InputError(f"reward model {name_or_path!r}: there is no such folder{hint}")


def require_reward_model(model: Model, source: str) -> None:
    """Raise `InputError` unless `model` is a classifier with one label."""
    labels = getattr(model.config, "num_labels", None)
    if labels != 1 or not any(hasattr(base_of(model), name) for name in ("score", "classifier")):
        raise InputError(
            f"reward model {source!r} is invalid: it is a {type(base_of(model)).__name__} with {labels} labels. Give a"
            " sequence classifier with num_labels=1."
        )


def _last_states(
    model: Model,
    input_ids: Tensor,
    attention_mask: Tensor,
    pad_token_id: int | None,
    entry: TrunkStates | None = None,
) -> Tensor:
    """Return the hidden states `(B, H)` that a sequence classifier reads: at the last token that is not the padding id.

    That is the last real token, but for a model trained with the end token as padding, which never saw its end tokens.
    """
    real = attention_mask.bool() if pad_token_id is None else attention_mask.bool() & (input_ids != pad_token_id)
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    ends = (positions * real).argmax(dim=1)
    return states_at(model, input_ids, attention_mask, torch.arange(len(ends), device=ends.device), ends, entry)


def load_classifier(name_or_path: str, dtype, **kwargs: Any) -> Model:
    """Load a sequence classifier with one label. Raises `InputError` when its head was never trained."""
    classifier, info = load_sequence_classifier(
        name_or_path, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
    )
    for key, found, wanted in info["mismatched_keys"]:
        if key.split(".")[0] in ("score", "classifier"):
            raise InputError(
                f"reward model {name_or_path!r} is invalid: it has {found[0]} labels. Give a model with num_labels=1."
            )
        raise InputError(
            f"reward model {name_or_path!r} is invalid: {key} has shape {tuple(found)} where its config says"
            f" {tuple(wanted)}. Save it again with the config that it was trained with."
        )
    if missing := [key for key in info["missing_keys"] if key.split(".")[0] in ("score", "classifier")]:
        raise InputError(
            f"reward model {name_or_path!r} has no trained score head: {', '.join(missing)} is not in its weights, so "
            "its rewards would be random\nGive a model trained with `hf-rlhf reward` (or trl.RewardTrainer)."
        )
    return classifier


def score_head(folder: str | os.PathLike) -> Tensor:
    """Return the weight of the score head, `(1, H)` in fp32 from a reward adapter's file."""
    head = require_saved_head(folder)
    if len(head) != 1:
        raise InputError(
            f"reward adapter {str(folder)!r} is invalid: its head has {len(head)} tensors, and only a linear head"
            " without a bias can be read from a policy's hidden states. Train it with `hf-rlhf reward`."
        )
    return next(iter(head.values())).float()
