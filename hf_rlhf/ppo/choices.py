"""The choices that a run makes by itself, in words: what is fast here, and what goes the plain way for which reason."""

from collections.abc import Mapping

from hf_rlhf.models.adapters import POLICY, base_of, is_peft_model
from hf_rlhf.models.fast.attention import FUSED, PACKED
from hf_rlhf.models.fast.cache import cache_of_rows
from hf_rlhf.models.fast.fused_lora import FusedLoraLinear
from hf_rlhf.models.machine import device_in_words
from hf_rlhf.models.policy import PolicyWithValue
from hf_rlhf.models.precision import dtype_in_words
from hf_rlhf.ops.logprobs import chunk_rows
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.trunk import TrunkChoice
from hf_rlhf.rollout.graphs import why_not
from hf_rlhf.types import Model


def choices(
    policy: PolicyWithValue,
    args: PPOConfig,
    attention_kinds: Mapping[Model, str],
    trunk: TrunkChoice,
    *,
    sharded: bool = False,
) -> dict[str, str]:
    """Return what was chosen for a PPO run, by name.

    Args:
        policy: policy, critic and reference.
        args: of the run.
        attention_kinds: the attention of models that train with another than the one they are loaded with.
        trunk: what is computed once.
        sharded: whether weights come and go between the steps of sampling.
    """
    base = base_of(policy.model)
    vocabulary = base.config.get_text_config().vocab_size
    kind = attention_kinds.get(base, base.config._attn_implementation)
    return {
        "device": device_in_words(args.device, args.world_size),
        "dtype": dtype_in_words(base, args.device),
        "sampling": _engine(base, args, sharded=sharded),
        "attention": _attention(kind, args, loaded=base.config._attn_implementation),
        "adapters": _adapters(policy, args),
        "logits": f"{chunk_rows(vocabulary, args.device)} tokens at a time",
        "trunk": trunk.words or "every block is trained" if args.reuse_trunk else "reuse_trunk=false",
        "compiled blocks": "in updates" if args.torch_compile else "no (torch_compile)",
    }


def in_lines(chosen: Mapping[str, str]) -> str:
    """Write them one below the other."""
    return "\n".join(f"{name}: {words}" for name, words in chosen.items())


def _engine(base: Model, args: PPOConfig, *, sharded: bool) -> str:
    if args.use_vllm:
        return "vLLM server"
    if args.use_transformers_continuous_batching:
        return "transformers, continuous batching"
    size = args.generation_batch_size or args.rollout_batch_size // args.world_size
    steps = ""
    if args.device.type == "cuda":
        unasked = None if args.use_cuda_graphs else "use_cuda_graphs"
        reason = unasked or ("sharded weights" if sharded else why_not(base, cache_of_rows(base, 1)))
        steps = ", each step a CUDA graph" if reason is None else f", each step launched anew: {reason}"
    return f"transformers, {size} completions at a time{steps}"


def _attention(kind: str, args: PPOConfig, *, loaded: str) -> str:
    if kind == PACKED:
        return "sequences end to end, without padding"
    if loaded != FUSED:
        why = "the model was loaded with this attention"
    elif args.torch_compile:
        why = "torch_compile would compile anew for each length"
    elif not args.leaves_padding_out:
        why = "padding_free" if args.padding_free is False else "padding_free is for CPUs unless set"
    else:
        why = "this architecture mixes sequences that lie end to end"
    return f"{kind}, padded: {why}"


def _adapters(policy: PolicyWithValue, args: PPOConfig) -> str:
    model = policy.model
    if not is_peft_model(model):
        return f"none, {_trained_weights(policy, args)}"
    from peft.tuners.tuners_utils import BaseTunerLayer

    # a critic's or a reward model's adapter may be on layers that the policy's is not on
    layers = [
        module
        for module in model.modules()
        if isinstance(module, BaseTunerLayer) and POLICY in module._get_available_adapters()
    ]
    fused = sum(isinstance(layer, FusedLoraLinear) and layer.is_plain(POLICY, training=True) for layer in layers)
    rest = len(layers) - fused
    plain = f", {rest} by PEFT: no plain LoRA on a plain linear layer" if rest else ""
    return f"{fused} of {len(layers)} layers in one product{plain}"


def _trained_weights(policy: PolicyWithValue, args: PPOConfig) -> str:
    count = {True: 0, False: 0}
    for weight in policy.model.parameters():
        count[weight.requires_grad] += weight.numel()
    if not count[False]:
        return "all weights are trained"
    reason = "as it came" if args.num_layers_unfrozen is None else f"num_layers_unfrozen={args.num_layers_unfrozen}"
    head, embeddings = policy.model.get_output_embeddings(), policy.model.get_input_embeddings()
    tied = head.weight is embeddings.weight and not head.weight.requires_grad
    return (
        f"{count[True]:,} weights are trained and {count[False]:,} frozen ({reason})"
        f"{', the head too, since it is tied to the embeddings' if tied else ''}"
        f"{'; the reference shares the frozen ones' if policy.weights_in_reference() else ''}"
    )
