"""Refusals when the trainer is made, of options that do not work under a launcher's settings."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, ParallelismConfig
from accelerate.utils import FullyShardedDataParallelPlugin
from tiny import make_config, make_trainer

from hf_rlhf.distributed import require_ranks
from hf_rlhf.errors import InputError
from hf_rlhf.ppo.launch import GATES, require_known_launch, warn_of_silent_ddp

BLOCKS = ["LlamaDecoderLayer"]


def under_fsdp(**settings):
    by_blocks = {"fsdp_version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
    plugin = FullyShardedDataParallelPlugin(**by_blocks | settings)
    kind = SimpleNamespace(value="FSDP")
    return SimpleNamespace(
        distributed_type=kind,
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision="no",
        parallelism_config=None,
    )


def under_deepspeed(**config):
    return SimpleNamespace(
        distributed_type=SimpleNamespace(value="DEEPSPEED"),
        state=SimpleNamespace(),
        mixed_precision="no",
        parallelism_config=None,
        deepspeed_plugin=SimpleNamespace(deepspeed_config=config),
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"activation_checkpointing": True},
            "fsdp_activation_checkpointing must be false.*gradient_checkpointing=true",
        ),
        ({"cpu_offload": True}, "fsdp_offload_params must be false"),
        ({"auto_wrap_policy": "SIZE_BASED_WRAP"}, "fsdp_auto_wrap_policy must be TRANSFORMER_BASED_WRAP"),
        ({"transformer_cls_names_to_wrap": ["Linear"]}, r"fsdp_transformer_layer_cls_to_wrap must .*LlamaDecoderLayer"),
        ({"ignored_modules": "lm_head"}, "fsdp_ignored_modules must be omitted"),
    ],
    ids=["its own checkpointing", "offloading", "wrapping by size", "wrapping heads", "ignoring"],
)
def test_settings_of_fsdp_that_ppo_does_not_run_under(tmp_path, settings, said):
    with pytest.raises(InputError, match=said):
        require_known_launch(under_fsdp(**settings), make_config(tmp_path), BLOCKS)
    require_known_launch(under_fsdp(transformer_cls_names_to_wrap=BLOCKS), make_config(tmp_path), BLOCKS)


def test_fsdp_1_is_refused_for_every_trainer(tmp_path, monkeypatch):
    """Its flat parameters would be saved as they are: in shards, and without an error."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=1)
    monkeypatch.setattr("accelerate.state.AcceleratorState.fsdp_plugin", plugin, raising=False)
    with pytest.raises(InputError, match="fsdp_version=1 is invalid"):
        make_trainer(tmp_path)


@pytest.mark.parametrize("name", ["tp_size", "cp_size"])
def test_sequences_and_weights_in_pieces_are_refused(tmp_path, name):
    launched = under_fsdp()
    launched.parallelism_config = ParallelismConfig(**{name: 2})
    with pytest.raises(InputError, match="parallelism_config is invalid for PPO"):
        require_known_launch(launched, make_config(tmp_path), BLOCKS)
    launched.parallelism_config = ParallelismConfig(dp_shard_size=2)
    require_known_launch(launched, make_config(tmp_path), BLOCKS)


def test_continuous_batching_is_not_in_step(tmp_path):
    flags = {"use_transformers_continuous_batching": True, "gather_for_rollout": False}
    with pytest.raises(InputError, match="use_transformers_continuous_batching must be false"):
        require_known_launch(under_fsdp(), make_config(tmp_path, **flags), BLOCKS)


def test_fsdp_that_the_launcher_does_not_know_of_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"fsdp=.* is invalid for PPO.*Use accelerate launch"):
        make_trainer(tmp_path, model="no such model", fsdp="full_shard")


def test_zero_3_is_refused_with_what_shards_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_rlhf.ppo.launch.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(InputError, match=r"zero_stage=3 is invalid for PPO.*Use FSDP2"):
        require_known_launch(under_deepspeed(), make_config(tmp_path), BLOCKS)


@pytest.mark.parametrize("flag", GATES)
def test_deepspeed_refuses_flags_that_need_the_optimizer(tmp_path, flag):
    value = {"ratio_threshold": 10.0, "early_stop_kl": 0.1, "critic_warmup_iterations": 1, "critic_learning_rate": 0.1}
    with pytest.raises(InputError, match=rf"{flag} needs the optimizer, which DeepSpeed owns"):
        require_known_launch(under_deepspeed(), make_config(tmp_path, **{flag: value[flag]}), BLOCKS)
    require_known_launch(under_deepspeed(), make_config(tmp_path), BLOCKS)


def test_mixed_precision_of_deepspeed_is_seen_though_accelerate_says_no(tmp_path):
    with pytest.raises(InputError, match=r"mixed_precision=bf16 is invalid for PPO.*launcher's YAML file"):
        require_known_launch(under_deepspeed(bf16={"enabled": True}), make_config(tmp_path), BLOCKS)


def test_weights_on_the_first_rank_alone_are_refused_before_they_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with pytest.raises(InputError, match="fsdp_cpu_ram_efficient_loading=true is invalid for PPO"):
        make_trainer(tmp_path, model="no such model")


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_launch_that_is_not_sharded_after_all_is_told_so(tmp_path, monkeypatch, caplog, variable):
    args = make_config(tmp_path)
    accelerator = Accelerator(cpu=True)
    warn_of_silent_ddp(accelerator, args)
    assert not caplog.text
    monkeypatch.setenv(variable, "true")
    warn_of_silent_ddp(accelerator, args)
    assert "nothing is sharded" in caplog.text


def test_gathering_block_by_block_without_shards_is_told_to_do_nothing(tmp_path, caplog):
    args = make_config(tmp_path, gather_for_rollout=False)
    warn_of_silent_ddp(Accelerator(cpu=True), args)
    assert "gather_for_rollout=false does nothing" in caplog.text


def test_several_processes_without_an_accelerator_are_not_runs_of_their_own(tmp_path, monkeypatch):
    """Accelerate would take each of them for the only one."""
    if torch.accelerator.is_available():
        pytest.skip("needs a machine without accelerators")
    args = make_config(tmp_path, use_cpu=False)
    require_ranks(args)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        InputError, match=r"started 2 processes, and no accelerator is visible.*ACCELERATE_USE_CPU=true"
    ):
        require_ranks(args)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    require_ranks(args)
