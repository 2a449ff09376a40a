"""Weights that FSDP2 shards over the ranks: gathered to be used or saved, and cut again when a file is loaded.

Outside of its own forward and backward pass an FSDP2 module holds `DTensor`s, one shard on each rank, and every use of
them is a collective. Sampling and forward passes without gradient call parts of the policy by themselves, and a
different number of times on each rank. They run in `unsharded`. What a save writes comes from `gather_weights`.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_rlhf.distributed import rank


def fsdp_modules(module: nn.Module) -> list[Any]:
    """Return the modules that FSDP2 gathers and frees as one, root first; none when nothing is sharded."""
    from torch.distributed.fsdp import FSDPModule

    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def is_sharded(module: nn.Module) -> bool:
    """Return whether a rank holds only shards of some of the module's weights right now."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(weight, DTensor) for weight in module.parameters())


def prepare_sharded(module: nn.Module, *, reshard_after_forward: bool) -> None:
    """Let plain files be loaded into a module that FSDP2 has sharded, and parts of it be called by themselves.

    Does nothing for a module that is not sharded, and at a second call.

    Args:
        module: what accelerate prepared.
        reshard_after_forward: whether its blocks free their weights after each forward pass.
    """
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    if not isinstance(module, FSDPModule) or hasattr(module, "reshards_after_forward"):
        return
    setattr(module, "reshards_after_forward", reshard_after_forward)  # noqa: B010 (no attribute of nn.Module)
    # FSDP takes for its root what runs first. A block that sampled first would be it, so the root runs first, idly.
    setattr(module, "run_idly", lambda argument: None)  # noqa: B010 (on a GPU, FSDP wants one to move there)
    register_fsdp_forward_method(module, "run_idly")
    with torch.no_grad():
        module.run_idly(0)  # pyright: ignore[reportCallIssue]
    for part in module.modules():
        part.register_load_state_dict_pre_hook(_shard_loaded)


def _shard_loaded(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Shard whole tensors that are about to be loaded. Every rank has read all of them, so none waits for another."""
    from torch.distributed.tensor import DTensor

    for name, parameter in module._parameters.items():
        given = state_dict.get(prefix + name)
        if isinstance(parameter, DTensor) and given is not None and not isinstance(given, DTensor):
            state_dict[prefix + name] = shard_like(given, parameter)


def shard_like(whole: Tensor, parameter: Any) -> Any:
    """Return this rank's shard of a whole tensor as a `DTensor` laid out as `parameter`, without communication."""
    from torch.distributed.tensor import distribute_tensor

    whole = whole.to(parameter.device, parameter.dtype)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


@contextmanager
def unsharded(module: nn.Module, *, blocks: bool = True) -> Iterator[None]:
    """Hold the weights whole on every rank, as plain tensors, while the block runs. Every rank enters it.

    With `blocks`, all weights are gathered once: inside, no rank waits for another. Without, only the root's own
    weights are (embeddings, head), and each block is gathered whenever it runs: every rank has to make the same calls.

    Changes made inside are lost, and a `state_dict` call inside shards the weights again. Uses may be nested: the
    outermost shards again what it gathered.
    """
    if not is_sharded(module):
        yield
        return
    root, *inner = parts = fsdp_modules(module)
    mine = parts if _holds_shards(root, inner) else inner
    try:
        if blocks:
            root.set_reshard_after_forward(False)
        for part in parts if blocks else parts[:1]:
            part.unshard()
        yield
    finally:
        for part in mine:
            part.reshard()
        if blocks:
            root.set_reshard_after_forward(root.reshards_after_forward)
            root.set_reshard_after_forward(False, recurse=False)  # its backward pass follows its forward pass at once


def _holds_shards(part: nn.Module, inner: Collection[nn.Module]) -> bool:
    """Return whether `part` holds shards of weights that belong to none of `inner`."""
    from torch.distributed.tensor import DTensor

    others = {id(weight) for each in inner for weight in each.parameters()}
    return any(isinstance(weight, DTensor) and id(weight) not in others for weight in part.parameters())


def gather_weights(module: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    """Return the parameters `names` of a sharded module and its saved buffers, whole and on the CPU, on the first rank.

    Every rank takes part, and the others get an empty dict. One parameter is gathered at a time. Tied weights are one
    tensor under each of their names.
    """
    gathered: dict[int, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name not in names:
            continue
        if id(parameter) not in gathered:
            whole = gathered_tensor(parameter.detach())
            gathered[id(parameter)] = whole.cpu() if rank() == 0 else whole.new_empty(0)
        weights[name] = gathered[id(parameter)]
    if rank() > 0:
        return {}
    buffers = {
        f"{prefix}.{name}" if prefix else name: buffer.cpu()
        for prefix, part in module.named_modules(remove_duplicate=False)
        for name, buffer in part._buffers.items()
        if buffer is not None and name not in part._non_persistent_buffers_set
    }
    return weights | buffers


def gathered_tensor(tensor: Any) -> Tensor:
    """Return a tensor whole, on every rank; every rank takes part where it is sharded."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local_shard(tensor: Any) -> Tensor:
    """Return this rank's shard of a tensor, or the tensor itself where it is not sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def below(state_dict: Mapping[str, Tensor] | None, prefix: str) -> dict[str, Tensor] | None:
    """Return the part of a state dict that belongs to the submodule `prefix`; None for None."""
    if state_dict is None:
        return None
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in state_dict.items() if name.startswith(start)}
