"""One typed function per stage. The command line, the launch scripts and your imports call the same ones."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.recipes.arguments import (
        DataArguments,
        ModelArguments,
        PPOArguments,
        RewardArguments,
        RewardTrainingArguments,
        SFTTrainingArguments,
    )
    from hf_rlhf.recipes.common import RunResult
    from hf_rlhf.recipes.ppo import train_ppo
    from hf_rlhf.recipes.reward import train_reward_model
    from hf_rlhf.recipes.sft import train_sft

_HOMES = {
    "DataArguments": "hf_rlhf.recipes.arguments",
    "ModelArguments": "hf_rlhf.recipes.arguments",
    "PPOArguments": "hf_rlhf.recipes.arguments",
    "RewardArguments": "hf_rlhf.recipes.arguments",
    "RewardTrainingArguments": "hf_rlhf.recipes.arguments",
    "RunResult": "hf_rlhf.recipes.common",
    "SFTTrainingArguments": "hf_rlhf.recipes.arguments",
    "train_ppo": "hf_rlhf.recipes.ppo",
    "train_reward_model": "hf_rlhf.recipes.reward",
    "train_sft": "hf_rlhf.recipes.sft",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = [
    "DataArguments",
    "ModelArguments",
    "PPOArguments",
    "RewardArguments",
    "RewardTrainingArguments",
    "RunResult",
    "SFTTrainingArguments",
    "train_ppo",
    "train_reward_model",
    "train_sft",
]
