"""Memory of each phase of PPO, from the model's config alone.

The tensors that a backward pass keeps are counted and not estimated. The real modules run on tensors without data
(FakeTensorMode), and the sizes of the tensors that autograd saves are added up. So every architecture and attention
counts as it is, at any size, in a second or two.
"""

import os
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from hf_rlhf.models.adapters import POLICY, base_of, compute_in_base_dtype
from hf_rlhf.models.fast.attention import set_attention, training_attention
from hf_rlhf.models.fast.fused_lora import fuse_lora
from hf_rlhf.models.fast.trunk import train_last_blocks, trunk_depth
from hf_rlhf.models.full_training import require_no_adapter
from hf_rlhf.models.lora_targets import require_known_layers
from hf_rlhf.models.precision import current_device
from hf_rlhf.ops.logprobs import chunk_rows
from hf_rlhf.planning.layout import Layout
from hf_rlhf.planning.work import ModelShape
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.launch import rewards_share_base
from hf_rlhf.types import Model

_CONTEXT = 0.6e9  # bytes of a CUDA context
_PROCESS = 0.15e9  # by which a process on a CPU grows besides: tokenizer, kernels, buffers; fitted, as is the next
_SLACK_CPU = 1.15  # of a phase: what malloc does not give back, which differs by 20 % between equal runs
_BYTES_4BIT = 0.56  # a weight in NF4, its block constants included (Dettmers 2023, arXiv 2305.14314)
_BYTES_8BIT = 1.0  # a weight in LLM.int8; the scale of a row is not much


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one device."""

    fixed: dict[str, float]  # there from the beginning to the end, by what it is
    phases: dict[str, float]  # besides, in each phase

    @property
    def peak(self) -> float:
        """The most that is used at once."""
        return sum(self.fixed.values()) + max(self.phases.values())


@dataclass(frozen=True)
class MemoryModel:
    """Facts about the models that `plan_memory` needs.

    They are found once, and batch sizes can then be varied at no cost.
    """

    shape: ModelShape
    itemsize: int  # of the base
    trained: int  # weights of the policy that are trained
    lora: bool  # whether they are adapters, on a frozen base
    activations: float  # bytes that the backward pass keeps, a token
    block_activations: float  # the same of one block
    length: int  # tokens of the longest sequence
    sampled: int  # tokens of it that the policy samples
    reward: float  # bytes of the reward models' weights, bases shared with the policy omitted
    libraries: float  # bytes of a process that has done nothing yet; 0 on a GPU but for its context
    quantized: bool = False
    quantized_bytes: float = _BYTES_4BIT  # of a weight, where `quantized`
    reward_bases: float = 0.0  # bytes of the bases of reward adapters, where they cannot share the policy's
    trunk: int = 0  # untrained blocks at the bottom

    @property
    def trained_blocks(self) -> int:
        """Blocks from the first trained one on."""
        return self.shape.layers - self.trunk


def model_on_meta(config: Any, dtype: torch.dtype = torch.float32) -> Model:
    """Return the policy's model without memory: its layers, their names and sizes."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def model_without_data(
    config: Any, dtype: torch.dtype, peft_config: Any, num_layers_unfrozen: int | None = None
) -> Model:
    """Make the policy's model with tensors without data; call this and use the model within a `FakeTensorMode`."""
    from peft import get_peft_model

    with unset_fake_temporarily(), torch.device("meta"):  # where PEFT can convert and move what it likes
        model: Any = model_on_meta(config, dtype)
        if peft_config is None:
            model.requires_grad_(True)
        else:
            require_known_layers(model, peft_config)
            model = get_peft_model(model, peft_config, adapter_name=POLICY)
            fuse_lora(model)
    device = current_device()
    moved: dict[int, Any] = {}  # tied weights stay tied
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = moved.setdefault(id(tensor), _without_data(tensor, device))
    if num_layers_unfrozen is not None:
        train_last_blocks(model, num_layers_unfrozen)
    return model


def _without_data(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def look_at(
    config: Any,
    args: PPOConfig,
    *,
    dtype: str,
    peft_config: Any,
    reward: float = 0.0,
    bits: int | None = None,
    episodes: bool = False,
) -> MemoryModel:
    """Collect everything about the models that `plan_memory` needs; read and download nothing.

    Args:
        config: of the policy's model.
        args: of the run.
        dtype: of the base.
        peft_config: of the policy's adapter; None where the model is trained as a whole.
        reward: bytes of the reward models' weights.
        bits: 4 or 8, of a quantized base.
        episodes: whether an environment answers, so that sequences are as long as episodes.
    """
    require_no_adapter(args.num_layers_unfrozen, has_adapter=peft_config is not None)
    longest = args.longest_episode if episodes else args.max_completion_length
    length = args.max_prompt_length + longest
    base_dtype = torch.float32 if peft_config is None else getattr(torch, dtype)
    with FakeTensorMode():
        shape = ModelShape.from_model(model_without_data(config, base_dtype, None))
        model = model_without_data(config, base_dtype, peft_config, args.num_layers_unfrozen)
        recomputes = bool(args.gradient_checkpointing)  # the plan is of full batches, in which there is no padding
        set_attention(training_attention([base_of(model)], args.device, length, packing=False, recomputes=recomputes))
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        saved = saved_bytes(model, args.per_device_train_batch_size, length)
        # A critic's adapter from elsewhere has unknown layers
        starts_elsewhere = args.critic == "adapter" and args.critic_path is not None
        trunk = 0 if starts_elsewhere else trunk_depth(base_of(model), (POLICY,))
    tokens = args.per_device_train_batch_size * length
    return MemoryModel(
        shape=shape,
        itemsize=base_dtype.itemsize,
        trained=trained,
        lora=peft_config is not None,
        activations=saved / tokens,
        block_activations=saved / tokens / (shape.layers - trunk),
        length=length,
        sampled=min(longest, args.max_turns * args.max_completion_length) if episodes else longest,
        reward=reward,
        libraries=resident_bytes() + _PROCESS if args.device.type == "cpu" else _CONTEXT,
        quantized=bits is not None,
        quantized_bytes=_BYTES_8BIT if bits == 8 else _BYTES_4BIT,
        trunk=trunk,
    )


def saved_bytes(model: Model, batch: int, length: int) -> int:
    """Return the bytes of all tensors but weights that a forward pass of the backbone keeps for its backward pass."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    causal_lm = base_of(model)
    ids = torch.zeros(batch, length, dtype=torch.long, device=causal_lm.device)
    attention_mask = torch.ones_like(ids)
    attention_mask[0, -1] = 0  # as batches are; without padding some kinds of attention keep no mask
    backbone: nn.Module = causal_lm.base_model
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        compute_in_base_dtype(model),
    ):
        output = backbone(input_ids=ids, attention_mask=attention_mask, use_cache=False)
    del output
    return sum(kept.values())


def plan_memory(model: MemoryModel, args: PPOConfig, layout: Layout | None = None) -> MemoryPlan:
    """Return the bytes of each phase on one device, for the batch sizes of `args`.

    The layout is by default the one that this process was launched in.
    """
    layout = layout or Layout.of_launch(args.world_size)
    shape = model.shape
    base = shape.parameters * model.itemsize
    if model.quantized:  # bitsandbytes leaves embeddings and head as they are, and experts that are one stacked weight
        base -= shape.quantizable * (model.itemsize - model.quantized_bytes)
    trained = layout.trained(model.trained, weights_are_base=not model.lora)
    # accelerate leaves quantized weights out of FSDP, since their blocks cannot be cut
    unsharded = shape.quantizable * model.quantized_bytes if model.quantized else 0.0
    frozen = layout.frozen(base - unsharded) + unsharded
    copied = frozen if layout.shards_weights else model.trained * model.itemsize  # by the reference of full fine-tuning
    fixed = {
        "libraries": model.libraries,
        "base": frozen,
        "what is trained, its gradients and moments": trained,
        "reference": 0.0 if model.lora else copied,
        "critic": {"value_head": 0.0, "adapter": trained, "model": frozen + trained}[args.critic],
        "reward models": model.reward + (0.0 if _shares_base(model, args, layout) else model.reward_bases),
    }
    besides = _gathered(model, args, layout, base - unsharded)
    kept = kept_states(model, args, layout) if args.device.type == "cpu" else 0.0  # where they are kept
    return MemoryPlan(
        {name: size for name, size in fixed.items() if size},
        {
            name: besides[name]
            + kept * (name != "sample")
            + size(model, args) * (_SLACK_CPU if args.device.type == "cpu" else 1.0)
            for name, size in (("sample", _sample), ("forward_pass", _forward_pass), ("update", _update))
        },
    )


def kept_states(model: MemoryModel, args: PPOConfig, layout: Layout) -> float:
    """Return the bytes of the states that leave the trunk, of all completions of an iteration on a device.

    They are 0 where none are kept.
    """
    if not (model.trunk and args.reuse_trunk and args.disable_dropout) or layout.strategy != "ddp":
        return 0.0
    tokens = args.rank_batch_size * model.length
    return tokens * float(model.shape.hidden * model.itemsize)


def _shares_base(model: MemoryModel, args: PPOConfig, layout: Layout) -> bool:
    # Whether a base of 4 bits is the one that a reward adapter was trained on cannot be told (`stands_on`)
    return model.lora and not model.quantized and rewards_share_base(args, sharded=layout.shards_weights)


def _gathered(model: MemoryModel, args: PPOConfig, layout: Layout, base: float) -> dict[str, float]:
    """Return the bytes of weights that FSDP gathers on a rank in each phase.

    They are those of all roles for a rollout, of some blocks in an update.
    """
    shape = model.shape
    embeddings = shape.vocab * shape.hidden * model.itemsize
    blocks = 0 if model.quantized else shape.quantizable * model.itemsize
    root = 2 * embeddings if base >= 2 * embeddings + blocks else embeddings
    trained = 4 * model.trained if model.lora else 0
    roles = {"value_head": 1, "adapter": 1, "model": 2}[args.critic] + (0 if model.lora else 1)
    gathered_in_rollout = layout.gathered(base + trained, root, shape.layers, blocks=args.gather_for_rollout)
    gathered_in_update = layout.gathered(
        base + 2 * trained, root, shape.layers, blocks=False
    )  # with the gradients of a block
    return {
        "sample": gathered_in_rollout * roles,
        "forward_pass": gathered_in_rollout * roles,
        "update": gathered_in_update,
    }


def _sample(model: MemoryModel, args: PPOConfig) -> float:
    """Return the bytes of keys and values, and of a step's logits in the few forms that sampling gives them."""
    shape = model.shape
    batch = args.generation_batch_size or args.rank_batch_size
    cache = 2 * shape.layers * shape.kv_width * model.itemsize * batch * model.length
    return cache + batch * shape.vocab * (model.itemsize + 5 * 4)


def _forward_pass(model: MemoryModel, args: PPOConfig) -> float:
    """Return the bytes of a pass without gradients, which holds one block's tensors at a time."""
    batch = passed_at_once(args)
    return batch * model.length * model.block_activations + _logits(model, batch * model.sampled, args.device)


def passed_at_once(args: PPOConfig) -> int:
    """Return how many sequences of a rank one forward pass takes."""
    return min(args.rollout_forward_batch_size, args.rank_batch_size)


def _update(model: MemoryModel, args: PPOConfig) -> float:
    shape, tokens = model.shape, args.per_device_train_batch_size * model.length
    kept = tokens * model.activations
    if args.gradient_checkpointing:  # the input of each block, and one block at a time
        blocks = model.trained_blocks if args.reuse_trunk else shape.layers
        kept = tokens * (blocks * shape.hidden * model.itemsize + model.block_activations)
    passes = 1 if args.critic == "value_head" else 2
    return passes * kept + _logits(model, args.per_device_train_batch_size * model.sampled, args.device)


def _logits(model: MemoryModel, tokens: int, device: torch.device) -> float:
    """Return the bytes of a chunk of logits in the base's dtype, and of two fp32 matrices of it."""
    elements = min(tokens, chunk_rows(model.shape.vocab, device)) * model.shape.vocab
    return elements * (2 * model.itemsize + 2 * 4)


def resident_bytes() -> float:
    """Return the bytes of memory that this process holds now."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux: about what Python, torch and transformers take
        return 0.6e9


def peak_bytes(device: torch.device) -> float | None:
    """Return the most bytes that this process has held on `device` (of a CPU, resident); None if not counted."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
