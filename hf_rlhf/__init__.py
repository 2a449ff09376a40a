"""RLHF on the Hugging Face stack: human feedback, reward models, and PPO with a value head."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

__version__ = "0.1.0"

_HOMES = {
    "AIFeedbackArguments": "hf_rlhf.recipes.ai_feedback_arguments",
    "write_ai_feedback": "hf_rlhf.recipes.ai_feedback",
    "EvaluateArguments": "hf_rlhf.recipes.evaluate_arguments",
    "evaluate_policy": "hf_rlhf.recipes.evaluate",
    "label": "hf_rlhf.recipes.label",
    "label_dataset": "hf_rlhf.recipes.label",
    "LabelArguments": "hf_rlhf.recipes.label_arguments",
    "Completion": "hf_rlhf.types",
    "DoctorArguments": "hf_rlhf.recipes.doctor",
    "examine_run": "hf_rlhf.recipes.doctor",
    "InputError": "hf_rlhf.errors",
    "PPOConfig": "hf_rlhf.ppo.config",
    "PPOTrainer": "hf_rlhf.ppo.trainer",
    "PPOArguments": "hf_rlhf.recipes.arguments",
    "RewardArguments": "hf_rlhf.recipes.arguments",
    "RewardTrainingArguments": "hf_rlhf.recipes.arguments",
    "DataArguments": "hf_rlhf.recipes.arguments",
    "SFTTrainingArguments": "hf_rlhf.recipes.arguments",
    "ModelArguments": "hf_rlhf.recipes.arguments",
    "RoundsArguments": "hf_rlhf.rounds.arguments",
    "RunResult": "hf_rlhf.recipes.common",
    "run_rounds": "hf_rlhf.rounds.run",
    "ScoreArguments": "hf_rlhf.recipes.score",
    "score_dataset": "hf_rlhf.recipes.score",
    "SegmentsArguments": "hf_rlhf.recipes.segments",
    "ask_about_segments": "hf_rlhf.recipes.segments",
    "ShowArguments": "hf_rlhf.recipes.show",
    "show_run": "hf_rlhf.recipes.show",
    "train_ppo": "hf_rlhf.recipes.ppo",
    "train_reward_model": "hf_rlhf.recipes.reward",
    "train_sft": "hf_rlhf.recipes.sft",
    "ValueHead": "hf_rlhf.models.heads",
    "ValueModel": "hf_rlhf.models.value_model",
    "load_reward_model": "hf_rlhf.models.reward_model",
    "load_value_model": "hf_rlhf.models.value_model",
}

if TYPE_CHECKING:
    from hf_rlhf.errors import InputError
    from hf_rlhf.models.heads import ValueHead
    from hf_rlhf.models.reward_model import load_reward_model
    from hf_rlhf.models.value_model import ValueModel, load_value_model
    from hf_rlhf.ppo.config import PPOConfig
    from hf_rlhf.ppo.trainer import PPOTrainer
    from hf_rlhf.recipes.ai_feedback import write_ai_feedback
    from hf_rlhf.recipes.ai_feedback_arguments import AIFeedbackArguments
    from hf_rlhf.recipes.arguments import (
        DataArguments,
        ModelArguments,
        PPOArguments,
        RewardArguments,
        RewardTrainingArguments,
        SFTTrainingArguments,
    )
    from hf_rlhf.recipes.common import RunResult
    from hf_rlhf.recipes.doctor import DoctorArguments, examine_run
    from hf_rlhf.recipes.evaluate import evaluate_policy
    from hf_rlhf.recipes.evaluate_arguments import EvaluateArguments
    from hf_rlhf.recipes.label import label, label_dataset
    from hf_rlhf.recipes.label_arguments import LabelArguments
    from hf_rlhf.recipes.ppo import train_ppo
    from hf_rlhf.recipes.reward import train_reward_model
    from hf_rlhf.recipes.score import ScoreArguments, score_dataset
    from hf_rlhf.recipes.segments import SegmentsArguments, ask_about_segments
    from hf_rlhf.recipes.sft import train_sft
    from hf_rlhf.recipes.show import ShowArguments, show_run
    from hf_rlhf.rounds.arguments import RoundsArguments
    from hf_rlhf.rounds.run import run_rounds
    from hf_rlhf.types import Completion

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = [
    "AIFeedbackArguments",
    "Completion",
    "DataArguments",
    "DoctorArguments",
    "EvaluateArguments",
    "InputError",
    "LabelArguments",
    "ModelArguments",
    "PPOArguments",
    "PPOConfig",
    "PPOTrainer",
    "RewardArguments",
    "RewardTrainingArguments",
    "RoundsArguments",
    "RunResult",
    "SFTTrainingArguments",
    "ScoreArguments",
    "SegmentsArguments",
    "ShowArguments",
    "ValueHead",
    "ValueModel",
    "ask_about_segments",
    "evaluate_policy",
    "examine_run",
    "label",
    "label_dataset",
    "load_reward_model",
    "load_value_model",
    "run_rounds",
    "score_dataset",
    "show_run",
    "train_ppo",
    "train_reward_model",
    "train_sft",
    "write_ai_feedback",
]
