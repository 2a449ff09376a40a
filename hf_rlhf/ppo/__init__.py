"""Proximal policy optimization with a value head, inside `transformers.Trainer`."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.ppo.config import PPOConfig
    from hf_rlhf.ppo.experience import Experience, MicroBatch
    from hf_rlhf.ppo.iteration_trainer import IterationTrainer
    from hf_rlhf.ppo.kl_control import AdaptiveKL, FixedKL
    from hf_rlhf.ppo.loss import PPOLoss, ppo_loss
    from hf_rlhf.ppo.scores import ScoreShaper, ScoreShaping
    from hf_rlhf.ppo.trainer import PPOTrainer

_HOMES = {
    "AdaptiveKL": "hf_rlhf.ppo.kl_control",
    "Experience": "hf_rlhf.ppo.experience",
    "FixedKL": "hf_rlhf.ppo.kl_control",
    "IterationTrainer": "hf_rlhf.ppo.iteration_trainer",
    "MicroBatch": "hf_rlhf.ppo.experience",
    "PPOConfig": "hf_rlhf.ppo.config",
    "PPOLoss": "hf_rlhf.ppo.loss",
    "PPOTrainer": "hf_rlhf.ppo.trainer",
    "ScoreShaper": "hf_rlhf.ppo.scores",
    "ScoreShaping": "hf_rlhf.ppo.scores",
    "ppo_loss": "hf_rlhf.ppo.loss",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = [
    "AdaptiveKL",
    "Experience",
    "FixedKL",
    "IterationTrainer",
    "MicroBatch",
    "PPOConfig",
    "PPOLoss",
    "PPOTrainer",
    "ScoreShaper",
    "ScoreShaping",
    "ppo_loss",
]
