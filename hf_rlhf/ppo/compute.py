"""The computation of a PPO run: attention, the kept trunk, kernels and compiled blocks, chosen before it starts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from accelerate import Accelerator
from accelerate.utils import DynamoBackend, TorchDynamoPlugin

from hf_rlhf.models.backbone import require_known_head
from hf_rlhf.models.fast.attention import training_attention
from hf_rlhf.models.fast.compile import compile_blocks, use_liger_kernels
from hf_rlhf.models.policy import PolicyWithValue
from hf_rlhf.ppo.build import PPOData
from hf_rlhf.ppo.choices import choices
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.launch import require_known_launch, warn_of_silent_ddp
from hf_rlhf.ppo.lengths import longest_sequence
from hf_rlhf.ppo.trunk import TrunkChoice, choose_trunk
from hf_rlhf.rewards.contract import Rewards
from hf_rlhf.types import Model


class Compute(NamedTuple):
    """Choices of a run."""

    attention: dict[Model, str]  # of the models that train with another attention than they were loaded with
    trunk: TrunkChoice
    choices: dict[str, str]  # in words, by name


def choose_compute(
    policy: PolicyWithValue,
    args: PPOConfig,
    accelerator: Accelerator,
    data: PPOData,
    rewards: Rewards | None,
    *,
    sharded: bool,
) -> Compute:
    """Choose how the run computes, and prepare the policy for it.

    Raises `InputError` for a launcher or an architecture with which PPO is not known to compute what it should.

    Args:
        policy: policy, critic and reference.
        args: of the run.
        accelerator: of the trainer.
        data: says the longest sequence.
        rewards: of the run; some may share the trunk.
        sharded: whether the launcher shards weights or optimizer state.
    """
    require_known_launch(accelerator, args, policy._no_split_modules)
    warn_of_silent_ddp(accelerator, args)
    require_known_head(policy.model)
    attention = training_attention(
        policy.transformers_models(),
        args.device,
        longest_sequence(args, data),
        packing=args.leaves_padding_out,
        recomputes=bool(args.gradient_checkpointing),
    )
    trunk = choose_trunk(policy, args, attention, sharded=sharded, rewards=rewards)
    policy.trunk = trunk.trunk
    for model in policy.transformers_models():
        if args.use_liger_kernel:
            use_liger_kernels(model, args.device, args.liger_kernel_config)
        if args.torch_compile:
            compile_blocks(model, args.torch_compile_backend, args.torch_compile_mode)
    if args.torch_compile:
        # accelerate would compile the whole module, adapters switched inside it and all
        accelerator.state.dynamo_plugin = TorchDynamoPlugin(backend=DynamoBackend.NO)
    return Compute(attention, trunk, choices(policy, args, attention, trunk, sharded=sharded))


@contextmanager
def hidden_from_trainer(args: PPOConfig) -> Iterator[None]:
    """Hide `use_liger_kernel` in the block: Trainer would look for kernels of the policy with its head, and warn."""
    use_liger_kernel = args.use_liger_kernel
    args.use_liger_kernel = False
    try:
        yield
    finally:
        args.use_liger_kernel = use_liger_kernel
