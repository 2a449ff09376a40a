"""Comparison, number by number, of a policy's base with the base that another adapter was trained on."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_rlhf.models.adapted import load_base
from hf_rlhf.models.adapter_files import adapter_base, base_revision, read_adapter_weights
from hf_rlhf.models.adapters import base_of
from hf_rlhf.models.batch_layout import backbone_of
from hf_rlhf.models.load import load_causal_lm, read_config, resolve_model
from hf_rlhf.types import Model

_OF_A_RUN = {
    "architectures", "bos_token_id", "dtype", "eos_token_id", "id2label", "label2id", "output_attentions",
    "output_hidden_states", "output_router_logits", "pad_token_id", "problem_type", "return_dict",
    "tie_word_embeddings", "transformers_version", "use_cache", "vocab_size", "_name_or_path",
}  # fmt: skip
"""Keys of a config that do not affect how hidden states come out of the weights; the vocabulary shows in their shapes.
"""

_WRAPPERS = ("base_layer", "original_module", "token_adapter")
"""Parts of a parameter's name that PEFT adds where it wraps a module of the base."""


def same_model(one: str, other: str) -> bool:
    """Return whether two names mean the same base model, be they Hub names, paths or `embedded:` names."""
    one, other = resolve_model(one), resolve_model(other)
    return one == other or (os.path.isdir(one) and os.path.isdir(other) and os.path.samefile(one, other))


def is_base_of(name_or_path: str, model: Model, **kwargs: Any) -> bool | None:
    """Return whether `model` has, below its adapters, the weights of a model by path or name, its head included.

    Like `stands_on`, but rows that were added to the vocabulary make no other base, and None is returned where it
    cannot be told. `kwargs` are for `from_pretrained`.
    """
    policy_base = base_of(model)
    if not same_model(name_or_path, policy_base.config._name_or_path):
        return False
    files, ours = _weight_files(name_or_path, kwargs.get("revision")), base_weights(model, whole=True)
    if getattr(policy_base, "is_quantized", False) or not files or any(w.numel() == 0 for w in ours.values()):
        return None
    if not _same_settings(name_or_path, policy_base):
        return False
    for name, weight in _stored(files, ""):
        if name in ours and ours[name].shape[1:] == weight.shape[1:] and not _begins_with(ours.pop(name), weight):
            return False
    if not ours:
        return True
    loaded = base_weights(load_causal_lm(name_or_path, **{**kwargs, "dtype": policy_base.dtype}), whole=True)
    return all(name in loaded and _begins_with(weight, loaded[name]) for name, weight in ours.items())


def stands_on(folder: str | os.PathLike, model: Model, *, whole: bool = False) -> bool:
    """Return whether the adapter in `folder` was trained on what `model`, a `PeftModel`, has below its adapters.

    The name does not say it: a model whose adapter was merged keeps its name, and so does another revision. Every
    tensor that hidden states depend on is compared, after rounding to the dtype in memory, and what the config says of
    their use. False also where it cannot be told: the base is quantized, or its files are not on this machine.

    `whole`: compare the head too, as an adapter of a language model needs.
    """
    policy_base, base = base_of(model), adapter_base(folder)
    if base is None or not same_model(base, policy_base.config._name_or_path):
        return False
    files = _weight_files(base, base_revision(folder))
    if getattr(policy_base, "is_quantized", False) or not files or not _same_settings(base, policy_base):
        return False
    ours, place = base_weights(model, whole=whole), "" if whole else _place_of_backbone(policy_base)
    if any(weight.numel() == 0 for weight in ours.values()):  # ZeRO-3 holds them elsewhere
        return False
    own, saved = _saved_weights(folder, place)
    for name, weight in own.items():  # which the adapter has instead of the base's
        if name in ours and ours.pop(name).shape != weight.shape:
            return False
    for name, weight in _stored(files, place):
        weight = saved.get(name, weight)
        if name in ours and ours[name].shape == weight.shape and not _equal(ours.pop(name), weight):
            return False
    if not ours:
        return True
    # Stored under other names than in memory, or resized.
    loaded = base_weights(load_base(load_causal_lm, folder, dtype=policy_base.dtype), whole=whole) | saved
    return all(name in loaded and _equal(weight, loaded[name]) for name, weight in ours.items())


def base_weights(model: Model, *, whole: bool = False) -> dict[str, Tensor]:
    """Return the weights below the head and the adapters of a model, by their names in its backbone.

    `whole`: those of the head too, by their names in the model.
    """
    adapters = set(getattr(model, "peft_config", None) or ())
    return {
        _plain(name): parameter.detach()
        for name, parameter in (base_of(model) if whole else backbone_of(base_of(model))).named_parameters()
        if adapters.isdisjoint(name.split("."))
    }


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _place_of_backbone(model: Model) -> str:
    """Return what the names of the backbone's parameters begin with."""
    backbone = backbone_of(model)
    return "".join(f"{name}." for name, module in model.named_modules() if module is backbone and name)


def _saved_weights(folder: str | os.PathLike, place: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split an adapter's file into modules that are its own instead of the base's, and tensors of the base itself."""
    from peft import PeftConfig

    modules = getattr(PeftConfig.from_pretrained(str(folder)), "modules_to_save", None) or ()
    own, saved = {}, {}
    for key, weight in read_adapter_weights(folder).items():
        is_own = key.split(".")[-2] in modules
        (own if is_own else saved)[_plain(key.removeprefix(f"base_model.model.{place}"))] = weight
    return own, saved


def _stored(files: list[Path], place: str) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for file in files:
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118
                yield key.removeprefix(place), weights.get_tensor(key)


def _weight_files(base: str, revision: str | None) -> list[Path]:
    """Return the files of a base's weights; none when they are not on this machine."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    folder = Path(resolve_model(base))
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(base, revision=revision, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError, OSError):
            return []
    names = ["model.safetensors"]
    if (index := folder / "model.safetensors.index.json").is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    files = [folder / name for name in names]
    return files if all(file.is_file() for file in files) else []


def _same_settings(base: str, model: Model) -> bool:
    return _settings(read_config(base)) == _settings(model.config)


def _settings(config: Any) -> dict[str, Any]:
    """Return what a config says of how hidden states come out of the weights.

    Dropout is off where nothing is trained.
    """
    config = config.get_text_config()
    return {name: value for name, value in config.to_dict().items() if name not in _OF_A_RUN and "drop" not in name}


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.equal(ours.cpu(), theirs.cpu().to(ours.dtype))


def _begins_with(ours: Tensor, theirs: Tensor) -> bool:
    """Return whether the first rows are equal, and the others were added."""
    return len(ours) >= len(theirs) and _equal(ours[: len(theirs)], theirs)
