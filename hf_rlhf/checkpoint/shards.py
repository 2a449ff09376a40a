"""The state of an optimizer that FSDP2 or DeepSpeed shards: a file for each rank, none of them a pickle."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_rlhf.checkpoint.state import load_state, save_state
from hf_rlhf.distributed import rank
from hf_rlhf.errors import InputError, RunFailed
from hf_rlhf.models.sharding import local_shard

DEEPSPEED = "DEEPSPEED"
MODEL_ALONE = "it holds the model alone (save_only_model), so no run can resume from it"


def save_optimizer_shard(folder: Path, name: str, optimizer: Any, launch: str) -> None:
    """Write this rank's shard of the state of a torch optimizer below `folder`, as `name`-<rank>.

    `launch` is accelerate's name of what shards it. Under DeepSpeed the optimizer's parameters are fp32 copies, which
    the model's own weights cannot give back where they are bf16, so they are written too.
    """
    state = {"launch": launch, "optimizer": _map_tensors(optimizer.state_dict(), local_shard)}
    if launch == DEEPSPEED:
        state["parameters"] = [parameter.detach() for parameter in _parameters(optimizer)]
    save_state(folder, f"{name}-{rank()}", state)


@torch.no_grad()
def load_optimizer_shard(folder: Path, name: str, optimizer: Any, launch: str) -> None:
    """Read what `save_optimizer_shard` wrote. The parameters are sharded over the same number of ranks.

    Raises `InputError` when another launch wrote it, or nothing did.
    """
    if not (folder / f"{name}-{rank()}.json").is_file():
        raise InputError(f"resume={folder} is invalid: {_written_otherwise(folder)}.")
    saved = load_state(folder, f"{name}-{rank()}")
    if saved["launch"] != launch:
        raise InputError(
            f"resume={folder} is invalid: it is of a run under {saved['launch']}, and this one is under {launch}, which"
            " shards the optimizer's state differently. Resume with the launcher settings of that run."
        )
    state, parameters = saved["optimizer"], _parameters(optimizer)
    if launch == DEEPSPEED:
        for parameter, value in zip(parameters, saved["parameters"], strict=True):
            parameter.copy_(value)
    sharded = {
        number: {key: _as_shard_of(parameters[number], value) for key, value in values.items()}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": sharded})


def launch_of(folder: Path, name: str) -> str:
    """Return accelerate's name of what sharded the state below `folder`."""
    return load_state(folder, f"{name}-0")["launch"]


def _written_otherwise(folder: Path) -> str:
    if (folder / "latest").exists():
        return (
            "DeepSpeed wrote it in its own format, as it does under ZeRO-3. Resume with the launcher settings of that"
            " run (recipes/accelerate_configs/zero3.yaml)"
        )
    if any((folder / each).exists() for each in ("optimizer.bin", "pytorch_model_fsdp_0")):
        return "FSDP wrote it in its own format, for an earlier version of hf_rlhf. Start a new run"
    return MODEL_ALONE


def require_all_shards(folder: Path, name: str, ranks: int) -> None:
    """Raise `RunFailed` where the first rank does not see every rank's shard: the checkpoint would be incomplete."""
    if missing := [number for number in range(ranks) if not (folder / f"{name}-{number}.json").is_file()]:
        raise RunFailed(
            f"the optimizer's shards of ranks {missing} are not in {folder}. Choose an output_dir that all machines"
            " share."
        )


def _parameters(optimizer: Any) -> list[Any]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _as_shard_of(parameter: Any, value: Any) -> Any:
    """Return a part of an optimizer's state.

    It is a `DTensor` if it has a number for each weight of a sharded parameter.
    """
    from torch.distributed.tensor import DTensor

    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or not value.dim():
        return value
    shard = parameter.to_local()
    if value.shape != shard.shape:
        raise InputError(
            f"the optimizer's state has shape {tuple(value.shape)}, and the shard of its parameter"
            f" {tuple(shard.shape)}."
            " Use optim=adamw_torch under FSDP2."
        )
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
