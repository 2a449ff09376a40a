"""Arithmetic and memory traffic of a PPO iteration, counted from the model's shape.

The counts are a lower bound that no implementation can beat. Their times on a machine of known speed are its roofline
(Williams 2009, doi 10.1145/1498765.1498785).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hf_rlhf.models.machine import CPU_PRODUCTS, GPU_PRODUCTS, Product, fastest, operations, product_seconds
from hf_rlhf.types import Model


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a causal language model, as its config says."""

    layers: int
    hidden: int
    vocab: int
    kv_width: int  # of keys, and of values, of one layer and token
    query_width: int
    linear: int  # weights that each token is multiplied with in the blocks, the experts that it does not meet omitted
    quantizable: int  # weights of plain linear layers but the head
    linear_features: int  # inputs and outputs of those layers added up: a LoRA of rank r has r times as many weights
    parameters: int  # all, embeddings included, tied ones once

    @classmethod
    def from_model(cls, model: Model) -> "ModelShape":
        """Return the shape of a transformers model; one on the meta device will do."""
        config = model.config.get_text_config()
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head = model.get_output_embeddings()
        linears = [m for m in model.modules() if type(m).__name__ in ("Linear", "Conv1D") and m is not head]
        linear = sum(m.weight.numel() for m in linears)
        experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
        stacked = [
            p.numel() for name, p in model.named_parameters() if experts and ".experts." in name and p.dim() == 3
        ]
        used = sum(stacked) * (getattr(config, "num_experts_per_tok", None) or 1) // (experts or 1)
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            vocab=config.vocab_size,
            kv_width=kv_heads * head_dim,
            query_width=config.num_attention_heads * head_dim,
            linear=linear + used,
            quantizable=linear,
            linear_features=sum(sum(m.weight.shape) for m in linears),
            parameters=sum(p.numel() for p in model.parameters()),
        )


@dataclass(frozen=True)
class IterationSize:
    """One iteration of PPO: what is sampled, how often it is learned from, and what is trained.

    LoRA is on every linear layer of the trained blocks; `lora_rank` 0 trains all weights.
    """

    completions: int
    prompt_length: float  # mean, in tokens
    completion_length: float
    num_ppo_epochs: int
    lora_rank: int = 16
    reward_model: bool = True  # as large as the policy
    trained_share: float = 1.0  # of the blocks, from the first trained one on
    reuse_trunk: bool = True  # compute the others once per completion
    own_critic: bool = False  # whose states are not the policy's: an adapter or a model

    @property
    def tokens(self) -> float:
        """Prompt and completion tokens of all sequences."""
        return self.completions * (self.prompt_length + self.completion_length)

    @property
    def completion_tokens(self) -> float:
        """Sampled tokens."""
        return self.completions * self.completion_length


@dataclass(frozen=True)
class Machine:
    """Speed at which a machine multiplies and copies."""

    flops: float  # a second, of a matrix product in the model's dtype
    bandwidth: float  # bytes a second, read and written both counted

    @classmethod
    def measured(cls, dtype: torch.dtype, device: torch.device | str = "cpu", limit: float = 1.0) -> "Machine":
        """Measure a matrix product in `dtype` and a copy; each takes about `limit` seconds at most.

        The product is the largest of a few whose time the next smaller one foretells to fit into the limit: a dtype
        that the device only emulates may be a hundred times slower than others.
        """
        on_cpu = torch.device(device).type == "cpu"
        flops = _flops(dtype, device, CPU_PRODUCTS if on_cpu else GPU_PRODUCTS, limit)
        block = torch.ones((_CPU_COPY if on_cpu else _GPU_COPY) // 4, device=device)
        copy = torch.empty_like(block)
        return cls(flops, 2 * block.nbytes / fastest(lambda: copy.copy_(block), device, limit))


_CPU_COPY, _GPU_COPY = 2**26, 2**28
"""Bytes, more than a cache holds."""


def _flops(dtype: torch.dtype, device: torch.device | str, products: Sequence[Product], limit: float) -> float:
    """Return operations per second, measured with the last of `products` that fits into `limit` seconds.

    The first product is measured in any case.
    """
    flops = 0.0
    for product in products:
        if flops and 2 * operations(product) / flops > limit:
            break
        flops = operations(product) / product_seconds(product, dtype, device, limit / len(products))
    return flops


def roofline(shape: ModelShape, size: IterationSize, machine: Machine, itemsize: int) -> dict[str, float]:
    """Return the fewest seconds that `sample`, `forward_pass` and `update` can take.

    A decoding step reads every weight and the keys and values so far; all else is arithmetic. `forward_pass` holds a
    pass of the policy with its critic, one of the reference and one of the reward model; a critic of its own is a pass
    more, here and in an update. An update is a forward pass, and a backward pass that needs no gradient of the frozen
    weights.
    """
    length = size.prompt_length + size.completion_length
    adapter = size.lora_rank * shape.linear_features * size.trained_share
    attention = 2 * shape.layers * shape.query_width * length  # of a token: causal scores and their sum over values
    forward = 2 * (shape.linear + adapter) + attention  # operations a token
    head = 2 * shape.vocab * shape.hidden

    prefill = size.completions * size.prompt_length * forward / machine.flops
    weights = (shape.linear + shape.vocab * shape.hidden + adapter) * itemsize
    cache = 2 * shape.layers * shape.kv_width * itemsize * (size.prompt_length + size.completion_length / 2)
    step_bytes = (weights + size.completions * cache) / machine.bandwidth
    step_flops = size.completions * (forward + head) / machine.flops
    sample = prefill + size.completion_length * max(step_bytes, step_flops)

    from_trunk = size.trained_share if size.reuse_trunk else 1.0  # of a pass, all but the first
    passes = 1 + from_trunk * (1 + size.own_critic) + size.reward_model
    forward_pass = (passes * size.tokens * forward + 2 * size.completion_tokens * head) / machine.flops
    trained, heads = (adapter, 2) if size.lora_rank else (shape.linear * size.trained_share, 3)
    backward = size.trained_share * (2 * shape.linear + 2 * attention) + 2 * adapter + 2 * trained
    trained_tokens = (1 + size.own_critic) * size.tokens
    token_flops = trained_tokens * (from_trunk * forward + backward)
    update = size.num_ppo_epochs * (token_flops + size.completion_tokens * heads * head)
    return {"sample": sample, "forward_pass": forward_pass, "update": update / machine.flops}
