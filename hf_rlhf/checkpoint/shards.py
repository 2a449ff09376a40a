"""The state of an optimizer that FSDP2 or DeepSpeed shards over the ranks: a file for each rank, none of them a pickle."""

from pathlib import Path
from typing import Any

from torch import Tensor

from hf_rlhf.checkpoint.state import load_state, save_state
from hf_rlhf.distributed import rank
from hf_rlhf.models.sharding import local_shard


def save_optimizer_shard(folder: Path, name: str, optimizer: Any) -> None:
    """Write this rank's shard of the state of a torch optimizer below `folder`, as `name`-<rank>."""
    save_state(folder, f"{name}-{rank()}", _map_tensors(optimizer.state_dict(), local_shard))


def load_optimizer_shard(folder: Path, name: str, optimizer: Any) -> None:
    """Read what `save_optimizer_shard` wrote. The parameters are sharded over as many ranks as they were then."""
    state = load_state(folder, f"{name}-{rank()}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sharded = {
        number: {key: _as_shard_of(parameters[number], value) for key, value in values.items()}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": sharded})


def _as_shard_of(parameter: Any, value: Any) -> Any:
    """Return a part of an optimizer's state as a `DTensor` where it has a number for each weight of a sharded parameter."""
    from torch.distributed.tensor import DTensor

    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or not value.dim():
        return value
    shard = parameter.to_local()
    if value.shape != shard.shape:
        return value
    return DTensor.from_local(
        value.to(shard.device),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _map_tensors(state: Any, change: Any) -> Any:
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, dict):
        return {key: _map_tensors(value, change) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_map_tensors(value, change) for value in state)
    return state
