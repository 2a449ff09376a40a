"""Named adapters on one frozen backbone. Nothing else in the package switches adapters.

Names: `policy`, `critic`, `reward` (`reward_1`, ... for more than one), `reference` when a run starts from an adapter.
"""

import contextlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapter_files import read_adapter_weights
from hf_rlhf.types import Model

POLICY, CRITIC, REFERENCE, REWARD = "policy", "critic", "reference", "reward"

# PEFT, TRL and this package serve transformers from before and after the new names. A user who trains can do
# nothing about the warning.
warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing\\w*` is deprecated", FutureWarning)


def is_peft_model(model: Model) -> bool:
    """Return whether `model` is wrapped by PEFT."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def base_of(model: Model) -> Model:
    """Return the transformers model inside a PEFT wrapper (with its adapter layers in place), or the model itself."""
    return model.get_base_model() if is_peft_model(model) else model


@contextlib.contextmanager
def keep_modes(*models: nn.Module) -> Iterator[None]:
    """Restore the train or eval mode of every module after the block."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def use_adapter(model: Model, name: str | None, *, inference: bool = False) -> Iterator[None]:
    """Run the block with adapter `name`, or with all adapters off when `name` is None; in eval mode for `inference`.

    The active adapter and train or eval mode are as before afterwards, whatever happens. `requires_grad` is left alone,
    where PEFT's own switches set it, at a cost of tens of milliseconds. Blocks may be nested. Raises ValueError for an
    adapter that is not there.
    """
    if name is not None and name not in model.peft_config:
        raise ValueError(f"Adapter {name} not found.")
    switched = _switched_modules(model)
    if any(layer.merged for layer in switched.layers):
        warnings.warn("an adapter was merged into its base. It is unmerged, to switch adapters", stacklevel=3)
        model.unmerge_adapter()
    adapted = [*switched.layers, *switched.wrappers]
    modes = [module.training for module in switched.modules]
    chosen = [(module._active_adapter, module._disable_adapters) for module in adapted]
    at_top = model.active_adapter, model.base_model.active_adapter
    try:
        for module in adapted:
            module._disable_adapters = name is None
        if name is not None:
            for layer in switched.layers:
                layer._active_adapter = [name]
            for wrapper in switched.wrappers:
                wrapper._active_adapter = [name] if name in wrapper._adapters else []
                if (tokens := getattr(wrapper, "token_adapter", None)) is not None:
                    tokens._active_adapter = wrapper._active_adapter
            model.active_adapter = model.base_model.active_adapter = name
        if inference:
            _set_modes(switched.modules, [False] * len(modes))
        yield
    finally:
        for module, (active, is_off) in zip(adapted, chosen, strict=True):
            module._active_adapter, module._disable_adapters = active, is_off
        model.active_adapter, model.base_model.active_adapter = at_top
        _set_modes(switched.modules, modes)


class _Switched(NamedTuple):
    """Parts of a PEFT model that `use_adapter` sets."""

    adapters: dict[str, Any]  # and their configs, when the lists were made
    modules: list[nn.Module]
    layers: list[Any]
    wrappers: list[Any]  # of modules that an adapter has a copy of, or some rows


def _switched_modules(model: Model) -> _Switched:
    """List a PEFT model's modules that switch adapters, once for each set of adapters; the model keeps the list."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    adapters = dict(model.peft_config)
    known = getattr(model, "_hf_rlhf_switched", None)
    if known is None or not _are_same(known.adapters, adapters):
        modules = list(model.modules())
        layers = [module for module in modules if isinstance(module, BaseTunerLayer)]
        wrappers = [module for module in modules if isinstance(module, AuxiliaryTrainingWrapper)]
        known = _Switched(adapters, modules, layers, wrappers)
        setattr(model, "_hf_rlhf_switched", known)  # noqa: B010 (no attribute of nn.Module)
    return known


def _are_same(some: dict[str, Any], others: dict[str, Any]) -> bool:
    return some.keys() == others.keys() and all(config is others[name] for name, config in some.items())


def _set_modes(modules: list[nn.Module], modes: list[bool]) -> None:
    for module, training in zip(modules, modes, strict=True):
        module.__dict__["training"] = training  # a tenth of the time of nn.Module's own assignment


def _adapter_layers(model: Model) -> list[Any]:
    if is_peft_model(model):
        return _switched_modules(model).layers
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def same_adapter_in_recomputation(model: Model) -> Callable[[], tuple[Any, Any]]:
    """Return a `context_fn` for `torch.utils.checkpoint` that recomputes a block as the forward pass ran it.

    The backward pass recomputes long after `use_adapter` and `compute_in_base_dtype` ended. Without this, it would find
    another adapter or dtype.
    """
    switched = _switched_modules(model)
    names = {"_active_adapter": [*switched.layers, *switched.wrappers]}
    names["_disable_adapters"] = names["_active_adapter"]
    names["cast_input_dtype_enabled"] = [
        layer for layer in switched.layers if hasattr(layer, "cast_input_dtype_enabled")
    ]

    def settings() -> list[Any]:
        return [getattr(module, name) for name, modules in names.items() for module in modules]

    def apply(values: list[Any]) -> None:
        places = ((module, name) for name, modules in names.items() for module in modules)
        for (module, name), value in zip(places, values, strict=True):
            setattr(module, name, value)

    @contextlib.contextmanager
    def as_in_forward(values: list[Any]) -> Iterator[None]:
        now = settings()
        apply(values)
        try:
            yield
        finally:
            apply(now)

    return lambda: (contextlib.nullcontext(), as_in_forward(settings()))


@contextlib.contextmanager
def compute_in_base_dtype(model: Model) -> Iterator[None]:
    """Run fp32 adapters on a bf16 base without casting the activations to fp32 and back at every layer.

    PEFT casts a layer's whole input to the adapter's dtype. Autocast casts the small matrices instead; gradients still
    arrive in fp32. Does nothing when the base is fp32.
    """
    dtype = base_of(model).dtype
    if dtype not in (torch.bfloat16, torch.float16):
        yield
        return
    with without_input_casting(model), torch.autocast(next(model.parameters()).device.type, dtype=dtype):
        yield


@contextlib.contextmanager
def without_input_casting(model: Model) -> Iterator[None]:
    """Keep PEFT from casting a layer's input to the dtype of its adapter.

    As peft.helpers.disable_input_dtype_casting, which some kinds of adapter (IA3, trained tokens) are not made for.
    """
    casting = [layer for layer in _adapter_layers(model) if getattr(layer, "cast_input_dtype_enabled", False)]
    for layer in casting:
        layer.cast_input_dtype_enabled = False
    try:
        yield
    finally:
        for layer in casting:
            layer.cast_input_dtype_enabled = True


def _mend_trained_tokens(model: Model) -> None:
    from hf_rlhf.models.trained_tokens import mend_trained_tokens  # imports PEFT

    mend_trained_tokens(model)


def save_adapter(
    model: Model, name: str, folder: str | os.PathLike, state_dict: dict[str, Tensor] | None = None
) -> None:
    """Write adapter `name` to `folder` in PEFT's layout, as if it were the only one.

    PEFT itself puts a named adapter into a subfolder, where `PeftModel.from_pretrained(folder)` does not look.
    `state_dict` holds the weights of a model whose own are sharded (`saved_names`).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _mend_trained_tokens(model)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".adapter-") as scratch:
        model.save_pretrained(
            scratch,
            selected_adapters=[name],
            save_embedding_layers=saves_embeddings(model),
            state_dict=state_dict,
        )
        inner = Path(scratch) / name
        for file in (inner if inner.is_dir() else Path(scratch)).iterdir():
            if file.name.startswith("adapter_"):
                os.replace(file, folder / file.name)


def saved_names(model: Model) -> set[str]:
    """Return the names of the parameters that saving `model` writes: of its adapters, or all where it has none."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if not is_peft_model(model):
        return set(parameters)
    from peft import get_peft_model_state_dict

    adapters = set(model.peft_config)
    # PEFT alone knows when it saves what is below an adapter besides: embeddings that were resized, trained biases.
    besides = {
        name
        for adapter in adapters
        for name in get_peft_model_state_dict(
            model, adapter_name=adapter, save_embedding_layers=saves_embeddings(model)
        )
    }
    return {
        name
        for name, parameter in parameters.items()
        if parameter.requires_grad or name in besides or adapters & set(name.split("."))
    }


def saves_embeddings(model: Model) -> Any:
    """Return PEFT's `save_embedding_layers`: an adapter on a resized base is of no use without the embeddings.

    By itself, PEFT compares with the base's config, and saves none where the Hub is out of reach.
    """
    return True if getattr(base_of(model), "has_own_vocabulary", False) else "auto"


def embedding_rows(model: Model) -> int:
    """Return the number of tokens that a model has embeddings for, adapted or not."""
    weight = base_of(model).get_input_embeddings().weight  # a layer of PEFT has no num_embeddings
    return getattr(weight, "ds_shape", weight.shape)[0]  # ZeRO-3 holds the rows elsewhere


def load_frozen_adapter(model: Model, folder: str | os.PathLike, name: str) -> None:
    """Add the adapter in `folder` as `name`, without gradients; the active adapter and all modes stay."""
    _mend_trained_tokens(model)
    with keep_modes(model):  # PEFT puts the whole model into eval mode here
        model.load_adapter(str(folder), name, is_trainable=False)


def add_trainable_adapter(model: Model, name: str, config, weights: dict[str, Tensor] | None = None) -> None:
    """Add a LoRA adapter that takes gradients beside the active one: fresh, or with `weights` from an adapter file."""
    from peft import set_peft_model_state_dict

    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    _mend_trained_tokens(model)
    with keep_modes(model):
        model.add_adapter(name, config)
        if weights is not None:
            set_peft_model_state_dict(model, weights, adapter_name=name)
    for parameter, required in gradients:
        parameter.requires_grad_(required)
    for parameter in adapter_parameters(model, name):
        parameter.requires_grad_(True)
    train_in_fp32(model)


def train_in_fp32(model: Model) -> Model:
    """Convert all that takes gradients to fp32: in bf16, small updates would be lost to rounding.

    PEFT does it for the matrices of an adapter, and leaves `modules_to_save`, a score head for instance, in the dtype
    of the base. Nothing is changed under DeepSpeed ZeRO-3, whose optimizer keeps fp32 copies of its own.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    for parameter in () if is_deepspeed_zero3_enabled() else model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def adapter_parameters(model: Model, name: str) -> list[Parameter]:
    """Return the parameters of adapter `name`."""
    return [parameter for key, parameter in model.named_parameters() if name in key.split(".")]


def load_adapter_weights(model: Model, folder: str | os.PathLike, name: str) -> None:
    """Replace the weights of adapter `name` by those of the adapter in `folder`."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    weights = read_adapter_weights(folder)
    _mend_trained_tokens(model)
    require_adapter_weights(folder, name, get_peft_model_state_dict(model, adapter_name=name), weights)
    result = set_peft_model_state_dict(model, weights, adapter_name=name)
    if result.unexpected_keys:
        raise InputError(
            f"{folder} is invalid: it holds weights that the adapter {name!r} has not, such as"
            f" {result.unexpected_keys[0]}. Save it again from the run that trained it."
        )


def require_adapter_weights(folder: str | os.PathLike, name: str, own: Iterable[str], found: Iterable[str]) -> None:
    """Raise `InputError` unless all that adapter `name` has of its `own` was `found` in the file in `folder`."""
    if missing := sorted(set(own) - set(found)):
        raise InputError(
            f"{folder} is invalid: it lacks weights of the adapter {name!r}, such as {missing[0]}. Save it again from"
            " the run that trained it."
        )


def overwrite_adapter(model: Model, source: str, target: str) -> None:
    """Copy the weights of adapter `source` to `target`; both exist and have the same shapes."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    _mend_trained_tokens(model)
    state = get_peft_model_state_dict(model, adapter_name=source)
    set_peft_model_state_dict(model, {key: tensor.clone() for key, tensor in state.items()}, adapter_name=target)


def copy_adapter(model: Model, source: str, target: str) -> None:
    """Add a frozen adapter `target` with the weights of `source`."""
    scratch = tempfile.mkdtemp(prefix="hf_rlhf-")
    try:
        save_adapter(model, source, scratch)
        load_frozen_adapter(model, scratch, target)
    finally:
        shutil.rmtree(scratch)
