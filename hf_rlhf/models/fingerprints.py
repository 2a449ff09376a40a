"""Digests of what a reward is: of a model's weights and tokenizer, and of settings."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_PLACES = ("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version")


def identity(*parts: Any) -> str:
    """Return the parts as canonical JSON, which is equal for equal parts and for no others."""
    return json.dumps(parts, sort_keys=True, ensure_ascii=True, allow_nan=False)


def model_fingerprint(
    model: Any, tokenizer: Any, weights: Mapping[str, Tensor] | None = None, settings: Sequence[str] = ()
) -> str:
    """Return a digest of all that decides a model's numbers: class, config, weights and buffers, and the tokenizer.

    The weights themselves are read, so a model object, a folder and a Hub name with the same weights have the same
    digest, and a folder whose files were replaced has another.

    Args:
        model: its class and config count.
        tokenizer: its rules, special tokens and chat template count.
        weights: those to read, by default all of the model's.
        settings: what else decides the numbers, as text.
    """
    digest = hashlib.sha256()
    config = model.config.to_dict()
    config = {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}
    add_text(digest, type(model).__name__, json.dumps(config, sort_keys=True, default=_sorted))
    add_text(digest, *tokenizer_parts(tokenizer), *settings)
    tensors = model.state_dict() if weights is None else weights
    for name in sorted(tensors):
        add_tensor(digest, name, tensors[name])
    return digest.hexdigest()


def adapter_settings(config: Any) -> str:
    """Return the settings of an adapter without the place of its base, equal in every process."""
    settings = {name: value for name, value in config.to_dict().items() if name not in _PLACES}
    return json.dumps(
        settings, sort_keys=True, default=lambda value: sorted(value) if isinstance(value, set) else str(value)
    )


def tokenizer_parts(tokenizer: Any) -> list[str]:
    """Return what decides the ids of a text: vocabulary and rules, special tokens, chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    special = json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    return [type(tokenizer).__name__, rules, special, json.dumps(getattr(tokenizer, "chat_template", None))]


def add_text(digest: Any, *texts: str) -> None:
    """Add texts to a digest, each after its length, so that no two lists of texts give the same bytes."""
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)}:".encode())
        digest.update(data)


def add_tensor(digest: Any, name: str, tensor: Tensor) -> None:
    """Add a tensor's name, dtype, shape and bytes to a digest."""
    add_text(digest, name, str(tensor.dtype), str(list(tensor.shape)))
    plain = tensor.detach().cpu().contiguous()
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)


def _sorted(value: Any) -> Any:
    """Return a set as a list in one order; what else JSON lacks as text."""
    return sorted(value) if isinstance(value, set) else str(value)
