"""Launches and optimizers that could not be saved or resumed are refused before the first update."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn

from hf_rlhf.checkpoint.launches import require_durable_launch, require_shardable
from hf_rlhf.checkpoint.shards import require_all_shards
from hf_rlhf.errors import InputError, RunFailed

MODEL = nn.Linear(2, 2)


def under(kind, **settings):
    """Return a stand-in for an accelerator, with only the parts that are read."""
    fsdp = FullyShardedDataParallelPlugin(**settings) if kind == "FSDP" else None
    return SimpleNamespace(
        distributed_type=SimpleNamespace(value=kind),
        state=SimpleNamespace(fsdp_plugin=fsdp),
        deepspeed_plugin=SimpleNamespace(deepspeed_config=settings),
    )


def zero(stage, **settings):
    return under("DEEPSPEED", zero_optimization={"stage": stage}, **settings)


WHOLE = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}


@pytest.mark.parametrize(
    ("launched", "said"),
    [
        (under("FSDP", fsdp_version=1), "fsdp_version=1 is invalid"),
        (zero(0), "zero_stage=0 is invalid: it shards nothing"),
        (under("DEEPSPEED", zero_optimization={}), "zero_stage=0 is invalid"),
        (zero(3), "zero3_save_16bit_model=false is invalid"),
        (zero(2, fp16={"enabled": True}), "mixed_precision=fp16 is invalid under DeepSpeed"),
    ],
    ids=["FSDP 1", "stage 0", "no stage", "shards of a model", "fp16"],
)
def test_what_could_not_be_saved_is_refused(launched, said):
    with pytest.raises(InputError, match=said):
        require_durable_launch(launched, MODEL)


@pytest.mark.parametrize(
    "launched",
    [
        under("FSDP", fsdp_version=2),
        zero(2, bf16={"enabled": True}, fp16={"enabled": "auto"}),
        zero(1),
        under("DEEPSPEED", zero_optimization=WHOLE),
        under("MULTI_GPU"),
    ],
    ids=["FSDP 2", "stage 2", "stage 1", "stage 3", "DDP"],
)
def test_what_can_be_saved_is_not(launched):
    require_durable_launch(launched, MODEL)


@pytest.mark.parametrize("kind", ["Params4bit", "Int8Params"])  # as bitsandbytes calls its own
def test_quantized_weights_are_not_sharded(kind):
    model = nn.Linear(2, 2)
    model.weight = type(kind, (nn.Parameter,), {})(torch.zeros(2, 2))
    with pytest.raises(InputError, match="load_in_4bit and load_in_8bit are invalid under FSDP2"):
        require_durable_launch(under("FSDP", fsdp_version=2), model)
    require_durable_launch(under("MULTI_GPU"), model)


def test_optimizers_that_lose_their_state_or_cannot_compute_on_shards_are_refused():
    adagrad = torch.optim.Adagrad(MODEL.parameters())  # has its sums from the start
    with pytest.raises(InputError, match="optim=adagrad is invalid under FSDP2: it has a state before"):
        require_shardable(adagrad, "adagrad")
    adamw = torch.optim.AdamW(MODEL.parameters())
    with pytest.raises(InputError, match="optim=adafactor is invalid under FSDP2"):
        require_shardable(adamw, "adafactor")
    require_shardable(adamw, "adamw_torch")


def test_a_checkpoint_lacks_no_shard(tmp_path):
    for number in (0, 2):
        (tmp_path / f"optimizer-{number}.json").touch()
    with pytest.raises(RunFailed, match=r"shards of ranks \[1\] are not in"):
        require_all_shards(tmp_path, "optimizer", 3)
    (tmp_path / "optimizer-1.json").touch()
    require_all_shards(tmp_path, "optimizer", 3)
