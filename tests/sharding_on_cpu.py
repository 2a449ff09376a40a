"""FSDP2 and DeepSpeed on gloo ranks of a CPU, by the code that runs on GPUs.

It holds the launcher's settings, and what else a CPU takes.

Both fall back to DDP silently on a CPU as accelerate is. FSDP: accelerate's list of launches that may be sharded
(`AcceleratorState.__init__`) lacks several CPUs, so the launch has another name while that list is read. DeepSpeed:
accelerate leaves it out for `use_cpu`, so the run says that it may use an accelerator, and DeepSpeed takes the CPU for
one.
"""

import importlib.util
import os

FSDP2 = {
    "ACCELERATE_USE_CPU": "true",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
"""Environment that `accelerate launch` makes of recipes/accelerate_configs/fsdp2.yaml."""

ZERO_2 = {
    "DS_ACCELERATOR": "cpu",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_GRADIENT_CLIPPING": "1.0",
}
"""And of zero2.yaml."""

HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None


def allow() -> dict:
    """Make what the environment asks for possible on a CPU; returns the arguments that a trainer needs for it."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        _allow_fsdp()
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # or g++ compiles for two minutes
        return {"use_cpu": False, "ddp_backend": "gloo"}
    return {"use_cpu": True}


def _allow_fsdp() -> None:
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    make = AcceleratorState.__init__

    def make_with_fsdp(self, *args, **kwargs):
        shared = PartialState._shared_state
        if shared.get("distributed_type") == DistributedType.MULTI_CPU:
            shared["distributed_type"] = DistributedType.MULTI_XPU
        make(self, *args, **kwargs)

    AcceleratorState.__init__ = make_with_fsdp
    _refuse_calls_without_arguments()


def _refuse_calls_without_arguments() -> None:
    """Refuse calls as torch up to 2.11 does on a GPU.

    There it moves the arguments of a root to the device, which is an IndexError if there are none.
    """
    from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState

    own = FSDPState._root_pre_forward

    def root_pre_forward(self, module, args, kwargs):
        assert args or kwargs, f"{type(module).__name__} is called by FSDP without an argument"
        return own(self, module, args, kwargs)

    FSDPState._root_pre_forward = root_pre_forward
