"""PPO's requirements on the launcher's settings: FSDP2, DeepSpeed, mixed precision."""

import logging
from collections.abc import Collection
from typing import Any

from accelerate import Accelerator
from transformers.integrations import is_deepspeed_zero3_enabled

from hf_rlhf.distributed import asked_for
from hf_rlhf.errors import InputError
from hf_rlhf.ppo.config import PPOConfig

GATES = ("ratio_threshold", "early_stop_kl", "critic_warmup_iterations", "critic_learning_rate")
"""Flags that withhold gradients, or give parameters a group of their own."""

logger = logging.getLogger(__name__)


def require_launcher(args: PPOConfig) -> None:
    """Raise `InputError` for sharding unknown to the launcher, or with which only the first rank loads weights.

    It is called before any weights are loaded.
    """
    if args.fsdp:
        raise InputError(
            f"fsdp={args.fsdp} is invalid for PPO, which has to know it before it loads a model. Use accelerate launch"
            " --config_file recipes/accelerate_configs/fsdp2.yaml instead"
        )
    if asked_for("ACCELERATE_USE_FSDP") and asked_for("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        raise InputError(
            "fsdp_cpu_ram_efficient_loading=true is invalid for PPO: every rank compares the weights of the policy, the"
            " critic and the reward models, and with it all ranks but the first have none yet. Set it to false"
        )


def rewards_share_base(args: PPOConfig, *, sharded: bool) -> bool:
    """Return whether reward adapters can score on the policy's base: not where it is sharded while they score.

    A policy that is `sharded` is so when blocks are gathered as they run, which every rank has to do as often, and when
    a vLLM server samples, for which nothing is gathered.
    """
    return not sharded or (args.gather_for_rollout and not args.use_vllm)


def require_known_launch(accelerator: Accelerator, args: PPOConfig, blocks: Collection[str]) -> None:
    """Raise `InputError` for launcher settings under which PPO is not known to compute what it should.

    `blocks` are the names of the classes of the models' blocks.
    """
    fsdp: Any = getattr(accelerator.state, "fsdp_plugin", None)
    by_deepspeed = accelerator.distributed_type.value == "DEEPSPEED"
    if fsdp is not None:
        _require_known_fsdp(fsdp, blocks)
        require_flags_of_fsdp(args)
    if by_deepspeed:
        _require_known_deepspeed()
        require_flags_of_deepspeed(args)
    parallel = accelerator.parallelism_config
    if parallel is not None and (parallel.cp_enabled or parallel.tp_enabled or parallel.sp_enabled):
        raise InputError(
            "parallelism_config is invalid for PPO with tp_size, cp_size or sp_size above 1: each rank samples and"
            " trains whole sequences. Leave them out"
        )
    precision = accelerator.mixed_precision
    if by_deepspeed:  # accelerate itself says "no" there
        plugin: Any = accelerator.deepspeed_plugin
        config = plugin.deepspeed_config
        precision = next((name for name in ("bf16", "fp16") if config.get(name, {}).get("enabled") is True), "no")
    if precision != "no":
        raise InputError(
            f"mixed_precision={precision} is invalid for PPO: the policy that is trained would be another than the one"
            " that samples. The model's dtype says how the base computes, and what is trained is fp32. Set"
            ' mixed_precision to "no" in the launcher\'s YAML file, and leave bf16 and fp16 out'
        )


def warn_of_silent_ddp(accelerator: Accelerator, args: PPOConfig) -> None:
    """Warn where accelerate fell back to DDP, or to one process, though the launcher or a flag asks for sharding."""
    kind = accelerator.distributed_type.value
    if not args.gather_for_rollout and kind != "FSDP":
        logger.warning(
            "gather_for_rollout=false does nothing: the weights are not sharded, since accelerate runs %s and not FSDP",
            kind,
        )
    for name, wanted in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DEEPSPEED")):
        if asked_for(name) and kind != wanted:
            logger.warning(
                "The launcher asked for %s and accelerate runs %s: nothing is sharded, and each rank holds all weights"
                " and optimizer state. accelerate shards over accelerators that its launcher gave to ranks, and not"
                " over CPUs",
                wanted,
                kind,
            )


def _require_known_fsdp(plugin: Any, blocks: Collection[str]) -> None:
    rules = {
        "fsdp_activation_checkpointing": (
            not plugin.activation_checkpointing,
            "must be false: it loses the adapter that a block ran with. Set gradient_checkpointing=true instead",
        ),
        "fsdp_offload_params": (
            type(plugin.cpu_offload).__name__ != "CPUOffloadPolicy",
            "must be false: sampling needs the weights on the device",
        ),
        "fsdp_auto_wrap_policy": (
            _is_by_blocks(plugin.auto_wrap_policy),
            "must be TRANSFORMER_BASED_WRAP: FSDP gathers the models' blocks one by one",
        ),
        "fsdp_transformer_layer_cls_to_wrap": (
            set(plugin.transformer_cls_names_to_wrap or ()) <= set(blocks),
            f"must be omitted, or name blocks ({', '.join(blocks)}): the head stays with the root",
        ),
        "fsdp_ignored_modules": (
            plugin.ignored_modules is None,
            "must be omitted: they would get no sum of gradients",
        ),
    }
    _require(rules)


def require_flags_of_fsdp(args: PPOConfig) -> None:
    """Raise `InputError` for flags with which PPO does not run under FSDP, whatever the launcher's settings."""
    rules = {
        "reward_while_sampling": (
            not (args.reward_while_sampling and not args.gather_for_rollout),
            "must be false with gather_for_rollout=false: ranks can have different numbers of generation batches",
        ),
        "torch_compile": (not args.torch_compile, "must be false: FSDP gathers blocks that are compiled already"),
        "use_transformers_continuous_batching": (
            not (args.use_transformers_continuous_batching and not args.gather_for_rollout),
            "must be false with gather_for_rollout=false: its ranks do not sample in step",
        ),
    }
    _require(rules)


def _require(rules: dict[str, tuple[bool, str]]) -> None:
    for name, (holds, rule) in rules.items():
        if not holds:
            raise InputError(f"{name} {rule}: PPO does not run under FSDP otherwise")


def _is_by_blocks(policy: Any) -> bool:
    return "transformer" in getattr(getattr(policy, "func", policy), "__name__", "")


def _require_known_deepspeed() -> None:
    if is_deepspeed_zero3_enabled():
        raise InputError(
            "zero_stage=3 is invalid for PPO: ZeRO-3 gathers the head for each chunk of logits, and ranks have"
            " different numbers of them. Use FSDP2, which shards the same things"
            " (recipes/accelerate_configs/fsdp2.yaml)"
        )


def require_flags_of_deepspeed(args: PPOConfig) -> None:
    """Raise `InputError` for flags that need the optimizer, which is DeepSpeed's."""
    for name in GATES:
        if getattr(args, name):
            raise InputError(f"{name} needs the optimizer, which DeepSpeed owns. Leave it out, or use DDP or FSDP2")
