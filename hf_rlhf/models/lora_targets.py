"""Names of layers in a PEFT config, compared with the layers that a model has, and restricted to its last blocks."""

import copy
import difflib
import math
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from torch import nn

from hf_rlhf.errors import InputError
from hf_rlhf.models.fast.trunk import block_list
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
    given, config = targets, _as_peft_reads_it(config, model)
    if given is not None and not isinstance(given, str):  # what PEFT gives another name, it knows
        targets = [name for name in given if name in config.target_modules]
        _require_names("lora_target_modules", targets, layers, "layer with a matrix of weights")
    _require_names("lora_modules_to_save", getattr(config, "modules_to_save", None) or (), modules, "module")
    parameters = [name for name, _ in model.named_parameters()]
    _require_names("lora_target_parameters", getattr(config, "target_parameters", None) or (), parameters, "parameter")
    _require_blocks(getattr(config, "layers_to_transform", None), model)


def share_of_blocks(layers: str | float) -> int | float:
    """Read the flag `lora_layers`: a number of blocks, or a fraction of them, 1.0 for `all`.

    Raises `InputError` for any other value.
    """
    text = str(layers)
    with suppress(ValueError):
        if int(text) >= 1:
            return int(text)
    with suppress(ValueError):
        if text == "all" or 0 < float(text) < 1:
            return 1.0 if text == "all" else float(text)
    raise InputError(
        f"lora_layers={layers} is invalid: it must be all, a number of blocks (8: the last 8), or a fraction of them"
        " between 0 and 1 (0.25: the last quarter)."
    )


def last_blocks(layers: str | float, blocks: int) -> int:
    """Return how many of a model's `blocks` the flag `lora_layers` means; a fraction of them is rounded up."""
    share = share_of_blocks(layers)
    if share > blocks:
        raise InputError(
            f"lora_layers={layers} is invalid: the model has {blocks} blocks. Set it to 1 to {blocks}, or all."
        )
    return share if isinstance(share, int) else math.ceil(share * blocks)


def in_last_blocks(config: Any, model: Model, layers: str | float) -> Any:
    """Return a LoRA config that adapts what `config` names in the last blocks of `model` alone.

    PEFT's `layers_to_transform` does it for names of layers. It goes with neither `all-linear`, which is replaced by
    the names of those layers in a block, nor a regular expression, which gets the numbers of the blocks. `layers` is
    the flag `lora_layers`. Raises `InputError` as `last_blocks`, and for a model without one list of blocks.
    """
    found = block_list(model)
    if found is None:
        raise InputError(
            f"lora_layers={layers} is invalid: {type(model).__name__} has no list of blocks. Set it to all"
        )
    name, blocks = found
    numbers = list(range(len(blocks) - last_blocks(layers, len(blocks)), len(blocks)))
    config, pattern = _as_peft_reads_it(config, model), name.rpartition(".")[2]
    targets = config.target_modules
    if targets == "all-linear":
        targets = {inner for block in blocks for inner, module in block.named_modules() if _is_linear(module)}
    if isinstance(targets, str):
        chosen = "|".join(map(str, numbers))
        config.target_modules = rf"(?=(.*\.)?{pattern}\.({chosen})\.)({targets})"
    elif targets:
        _require_inner(targets, blocks, layers)
        config.target_modules = targets
        config.layers_to_transform, config.layers_pattern = numbers, pattern
    if wanted := getattr(config, "target_parameters", None):
        inner = [f"{pattern}.{number}.{inner}" for number in numbers for inner, _ in blocks[number].named_parameters()]
        config.target_parameters = [each for each in inner if any(f".{each}".endswith(f".{name}") for name in wanted)]
    return config


def _as_peft_reads_it(config: Any, model: Model) -> Any:
    """Return a copy of a config with the names that PEFT makes of it.

    Experts of a layer are one parameter since transformers 5.
    """
    config = copy.deepcopy(config)
    with suppress(ImportError):  # an earlier PEFT leaves it as it is
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

        convert_peft_config_for_transformers(config, model, None)
    return config


def _require_inner(targets: Iterable[str], blocks: Iterable[nn.Module], layers: str | float) -> None:
    inner = [name for block in blocks for name, _ in (*block.named_modules(), *block.named_parameters())]
    outside = [name for name in targets if not any(f".{each}".endswith(f".{name}") for each in inner)]
    if outside:
        raise InputError(
            f"lora_layers={layers} is invalid with lora_target_modules={outside[0]}, which is in no block. Leave one"
            " of them out"
        )


def _is_linear(module: nn.Module) -> bool:
    """Return whether PEFT's `all-linear` means this layer."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _has_matrix(module: nn.Module) -> bool:
    """Return whether an adapter can change a layer, quantized or not: no norm, and no block of other layers."""
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
        raise InputError(
            f"lora_target_modules={pattern} is invalid: it is not a regular expression ({error})"
        ) from error
    if not found:
        raise InputError(
            f"lora_target_modules={pattern} is invalid: it is read as a regular expression, and fits no layer of the"
            f" model. {_choices(pattern, layers)}"
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
