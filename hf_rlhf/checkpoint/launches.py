"""Launcher settings and optimizers under which a run can be saved and resumed."""

from typing import Any

from accelerate import Accelerator
from torch import nn

from hf_rlhf.errors import InputError


def require_durable_launch(accelerator: Accelerator, model: nn.Module) -> None:
    """Raise `InputError` for settings under which a checkpoint would not hold the run's state."""
    fsdp: Any = getattr(accelerator.state, "fsdp_plugin", None)
    if fsdp is not None and fsdp.fsdp_version != 2:
        raise InputError(
            f"fsdp_version={fsdp.fsdp_version} is invalid: checkpoints need the shards of FSDP 2. Set it to 2, as in"
            " recipes/accelerate_configs/fsdp2.yaml."
        )
    if fsdp is not None:
        kinds = {type(weight).__name__ for weight in model.parameters()}
        require_shardable_base(quantized=bool(kinds & {"Params4bit", "Int8Params"}))
    if accelerator.distributed_type.value == "DEEPSPEED":
        plugin: Any = accelerator.deepspeed_plugin
        _require_durable_deepspeed(plugin.deepspeed_config)


def _require_durable_deepspeed(config: dict[str, Any]) -> None:
    zero = config.get("zero_optimization", {})
    if zero.get("stage", 0) == 0:
        raise InputError(
            "zero_stage=0 is invalid: it shards nothing, and its optimizer cannot be saved here. Set it to 2, or"
            " launch with recipes/accelerate_configs/ddp.yaml."
        )
    if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        raise InputError(
            "zero3_save_16bit_model=false is invalid: shards would be saved instead of a model. Set it to true, as in"
            " recipes/accelerate_configs/zero3.yaml."
        )
    if config.get("fp16", {}).get("enabled") is True:
        raise InputError(
            "mixed_precision=fp16 is invalid under DeepSpeed: its loss scale is not saved, so a resumed run would"
            " skip other updates. Use bf16, or DDP or FSDP2."
        )


def require_shardable_base(*, quantized: bool) -> None:
    """Raise `InputError` for a base of 4 or 8 bits under FSDP2."""
    if quantized:
        raise InputError(
            "load_in_4bit and load_in_8bit are invalid under FSDP2, which does not shard quantized weights. Use DDP or"
            " ZeRO-2, or a base in bf16"
        )


def require_shardable_optimizer(name: str) -> None:
    """Raise `InputError` for a flag `optim` that names an optimizer which cannot compute on the shards of FSDP2."""
    if name == "adafactor":
        raise InputError("optim=adafactor is invalid under FSDP2: it cannot compute on shards. Use adamw_torch")


def require_shardable(optimizer: Any, name: str) -> None:
    """Raise `InputError` for an optimizer that does not work on weights that FSDP2 shards.

    `name` is the flag `optim`. FSDP2 makes new parameters of a model's, and what an optimizer knew of the old ones is
    lost.
    """
    require_shardable_optimizer(name)
    if optimizer.state:
        raise InputError(
            f"optim={name} is invalid under FSDP2: it has a state before its first update, which sharding loses. Use"
            " adamw_torch"
        )
