"""Names of layers in a PEFT config, compared with the layers that a model has."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from hf_rlhf.errors import InputError
from hf_rlhf.types import Model


def require_known_layers(model: Model, config: Any) -> None:
    """Raise `InputError` for a name in a PEFT config that no layer of `model` has.

    PEFT itself refuses a config of which no name fits. Where some do, it leaves the others out without a word, and it
    never looks at those of `modules_to_save`. `config` may be None.
    """
    if config is None:
        return
    modules = [name for name, _ in model.named_modules()]
    layers = [name for name, module in model.named_modules() if _has_matrix(module)]
    targets = getattr(config, "target_modules", None)
    if isinstance(targets, str) and targets.lower() != "all-linear":
        _require_match(targets, layers)
    elif targets is not None and not isinstance(targets, str):
        _require_names("lora_target_modules", targets, layers, "layer with a matrix of weights")
    _require_names("lora_modules_to_save", getattr(config, "modules_to_save", None) or (), modules, "module")
    parameters = [name for name, _ in model.named_parameters()]
    _require_names("lora_target_parameters", getattr(config, "target_parameters", None) or (), parameters, "parameter")
    _require_blocks(getattr(config, "layers_to_transform", None), model)


def _has_matrix(module: nn.Module) -> bool:
    """Return whether a layer is one that an adapter can change, quantized or not: no norm, and no block of other layers."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return any(len(getattr(tensor, "ds_shape", tensor.shape)) >= 2 for tensor in own)  # ZeRO-3 holds them elsewhere


def _require_names(flag: str, wanted: Iterable[str], there: Sequence[str], kind: str) -> None:
    for name in wanted:
        if not any(f".{each}".endswith(f".{name}") for each in there):
            raise InputError(f"{flag}={name} is invalid: the model has no {kind} of this name. {_choices(name, there)}")


def _require_match(pattern: str, layers: Sequence[str]) -> None:
    try:
        found = any(re.fullmatch(pattern, name) for name in layers)
    except re.error as error:
        raise InputError(f"lora_target_modules={pattern} is invalid: it is no regular expression ({error})") from error
    if not found:
        raise InputError(
            f"lora_target_modules={pattern} is invalid: it is read as a regular expression, and fits no layer of the model."
            f" {_choices(pattern, layers)}"
        )


def _choices(name: str, offered: Iterable[str]) -> str:
    names = list(dict.fromkeys(each.rpartition(".")[2] for each in offered))
    names = [each for each in names if each and not each.isdecimal()]
    close = difflib.get_close_matches(name, names, n=1)
    meant = f"Did you mean {close[0]}? " if close else ""
    return f"{meant}It has {', '.join(names)}"


def _require_blocks(wanted: int | list[int] | None, model: Model) -> None:
    blocks = model.config.get_text_config().num_hidden_layers
    numbers = [wanted] if isinstance(wanted, int) else wanted or []
    if bad := [number for number in numbers if not 0 <= number < blocks]:
        raise InputError(f"layers_to_transform={bad[0]} is invalid: the model has blocks 0 to {blocks - 1}")
