"""trl's trainers as runs that can be killed and resumed."""

from typing import Any

import trl

from hf_rlhf.checkpoint.trainer import DurableTrainer
from hf_rlhf.models.adapters import is_peft_model, train_in_fp32
from hf_rlhf.models.load import require_full_training
from hf_rlhf.models.trained_tokens import mend_trained_tokens


class _CountsAsTrl(DurableTrainer):
    """Keeps what trl's trainers count between logs: means of the batches, and tokens seen. Trains in fp32."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        model: Any = self.model
        if is_peft_model(model):
            mend_trained_tokens(model)
            train_in_fp32(model)
        else:
            require_full_training(model, "the model")

    _metrics: dict[str, dict[str, list[float]]]
    _total_train_tokens: int

    def running_sums(self) -> dict[str, Any]:
        batches = {mode: dict(values) for mode, values in self._metrics.items()}
        return super().running_sums() | {"batches": batches, "tokens": self._total_train_tokens}

    def load_running_sums(self, sums: dict[str, Any]) -> None:
        super().load_running_sums(sums)
        for mode, values in sums["batches"].items():
            self._metrics[mode].update(values)
        self._total_train_tokens = sums["tokens"]


class RewardTrainer(_CountsAsTrl, trl.RewardTrainer):
    """`trl.RewardTrainer` with whole checkpoints."""


class SFTTrainer(_CountsAsTrl, trl.SFTTrainer):
    """`trl.SFTTrainer` with whole checkpoints."""
