"""Training that survives a kill: the durable Trainer, and trl's trainers on top of it."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.training.durable import DurableTrainer
    from hf_rlhf.training.trl_setup import make_reward_trainer
    from hf_rlhf.training.trl_trainers import RewardTrainer, SFTTrainer

_HOMES = {
    "DurableTrainer": "hf_rlhf.training.durable",
    "RewardTrainer": "hf_rlhf.training.trl_trainers",
    "SFTTrainer": "hf_rlhf.training.trl_trainers",
    "make_reward_trainer": "hf_rlhf.training.trl_setup",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = ["DurableTrainer", "RewardTrainer", "SFTTrainer", "make_reward_trainer"]
