"""Nested states (of optimizers, schedules, random generators) as safetensors and JSON, exact to the bit."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_rlhf.errors import RunFailed

_TENSOR, _TUPLE, _PAIRS = "__tensor__", "__tuple__", "__pairs__"


def save_state(folder: Path, name: str, state: Any) -> None:
    """Write `name`.json and, if there are tensors, `name`.safetensors.

    Numbers, text, None, lists, tuples, dicts with any such key, and tensors; a tensor that occurs twice is one again.
    Raises `RunFailed` for anything else.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    names: dict[int, str] = {}

    def plain(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in names:
                names[id(value)] = path
                tensors[path] = value.detach().cpu().clone().contiguous()
            return {_TENSOR: names[id(value)]}
        if isinstance(value, tuple):
            return {_TUPLE: [plain(inner, f"{path}.{i}") for i, inner in enumerate(value)]}
        if isinstance(value, list):
            return [plain(inner, f"{path}.{i}") for i, inner in enumerate(value)]
        if isinstance(value, dict):
            if all(isinstance(key, str) for key in value):
                return {key: plain(inner, f"{path}.{key}") for key, inner in value.items()}
            return {_PAIRS: [[plain(key, path), plain(inner, f"{path}.{key}")] for key, inner in value.items()]}
        if value is None or type(value) in (bool, int, float, str):
            return value
        raise RunFailed(
            f"{path} of the training state is a {type(value).__name__}, which a checkpoint cannot hold. Use another"
            " optimizer or schedule (optim, lr_scheduler_type), or save_strategy=no."
        )

    text = json.dumps(plain(state, name))
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    if tensors:
        save_file(tensors, folder / f"{name}.safetensors")


def load_state(folder: Path, name: str) -> Any:
    """Return the value that `save_state` wrote, with its tensors on the CPU."""
    from safetensors.torch import load_file

    file = folder / f"{name}.safetensors"
    tensors = load_file(file) if file.is_file() else {}

    def restored(value: Any) -> Any:
        if isinstance(value, list):
            return [restored(inner) for inner in value]
        if not isinstance(value, dict):
            return value
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        if _TUPLE in value:
            return tuple(restored(inner) for inner in value[_TUPLE])
        if _PAIRS in value:
            return {restored(key): restored(inner) for key, inner in value[_PAIRS]}
        return {key: restored(inner) for key, inner in value.items()}

    return restored(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))


def random_state() -> dict[str, Any]:
    """Return the state of every random generator of this process."""
    import random

    import numpy as np

    numpy_state: Any = np.random.get_state(legacy=False)
    state = {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {key: _as_plain(value) for key, value in numpy_state["state"].items()}},
        "torch": torch.get_rng_state(),
    }
    if torch.accelerator.is_available():
        state["device"] = torch.get_device_module().get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore the random generators from `random_state`."""
    import random

    import numpy as np

    numpy_state = state["numpy"]
    inner = {
        key: np.array(value, dtype=np.uint32) if key == "key" else value for key, value in numpy_state["state"].items()
    }
    random.setstate(state["python"])
    np.random.set_state({**numpy_state, "state": inner})
    torch.set_rng_state(state["torch"])
    if "device" in state and torch.accelerator.is_available():
        torch.get_device_module().set_rng_state(state["device"])


def _as_plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
