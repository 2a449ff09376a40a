"""The files of a saved adapter: its folder here or on the Hub, its config and its weights."""

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_rlhf.errors import InputError

ADAPTER_FILE, ADAPTER_CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"


def adapter_folder(name_or_path: str) -> str:
    """Return the local folder of an adapter named by path or Hub name; return any other name as it is."""
    wanted = ["adapter_*", "*.json", "*.jinja", "tokenizer*"]
    return hub_folder(name_or_path, ADAPTER_CONFIG_FILE, allow_patterns=wanted) or name_or_path


def hub_folder(name_or_path: str, sign: str, **patterns: Any) -> str | None:
    """Return a local copy of a Hub repository that has the file `sign`.

    None for a local folder, for a repository without that file, and with no Hub: loading a model by that name will say
    which. `patterns` are those of `snapshot_download`.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if os.path.isdir(name_or_path) or name_or_path.startswith("embedded:"):
        return None
    try:
        hf_hub_download(name_or_path, sign)
        return snapshot_download(name_or_path, **patterns)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        return None


def adapter_base(folder: str | os.PathLike) -> str | None:
    """Return the name of the base model of the adapter in `folder`; None when `folder` holds no adapter."""
    return _adapter_config(folder).get("base_model_name_or_path")


def base_revision(folder: str | os.PathLike) -> str | None:
    """Return the revision of the base that the adapter in `folder` names, if any."""
    return _adapter_config(folder).get("revision")


def adapter_task(folder: str | os.PathLike) -> str | None:
    """Return PEFT's name for what the adapter in `folder` was trained as: CAUSAL_LM, SEQ_CLS, ... or nothing."""
    return _adapter_config(folder).get("task_type")


def _adapter_config(folder: str | os.PathLike) -> dict[str, Any]:
    """Return the config of the adapter in `folder`; empty when it holds none."""
    file = Path(folder) / ADAPTER_CONFIG_FILE
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        config["base_model_name_or_path"]
        return config
    except (json.JSONDecodeError, KeyError) as error:
        raise InputError(f"{file}: not a PEFT adapter config ({error})") from error


def read_adapter_weights(folder: str | os.PathLike) -> dict[str, Tensor]:
    """Return the tensors of the adapter file in `folder`. Raises `InputError` when there is none."""
    from safetensors.torch import load_file

    file = Path(folder) / ADAPTER_FILE
    if not file.is_file():
        raise InputError(
            f"{folder}: there is no {ADAPTER_FILE} with the weights of an adapter or critic. An adapter_model.bin"
            " is a pickle and is not read. Load it with peft and save it again"
        )
    return load_file(file)
