"""The maths of RLHF: pure functions of tensors, with no model, no process group and no configuration.

Log-probabilities and the exact KL, from hidden states, live in `hf_rlhf.ops.logprobs`.
"""

from hf_rlhf.ops.advantages import (
    Advantages,
    direct_advantage_loss,
    gae,
    last_counted,
    leave_one_out,
    less_group_mean,
    less_mean_of_others,
    monte_carlo_returns,
    over_tokens,
    per_token_rewards,
    sequence_returns,
)
from hf_rlhf.ops.kl import FULL_KL, KL_ESTIMATORS, absolute, k1, k2, k3, kl_estimate
from hf_rlhf.ops.losses import (
    PolicyLoss,
    ValueLoss,
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    truncated_importance_weights,
)
from hf_rlhf.ops.masked import Moments, combine, masked_moments, masked_sum, whiten
from hf_rlhf.ops.padding import lengths_to_mask, pad_sequences
from hf_rlhf.ops.preference import (
    RATING_LOSSES,
    binary_loss,
    k_wise_loss,
    plackett_luce_loss,
    preference_accuracy,
    regression_loss,
)

__all__ = [
    "FULL_KL",
    "KL_ESTIMATORS",
    "RATING_LOSSES",
    "Advantages",
    "Moments",
    "PolicyLoss",
    "ValueLoss",
    "absolute",
    "binary_loss",
    "clipped_policy_loss",
    "clipped_value_loss",
    "combine",
    "direct_advantage_loss",
    "explained_variance",
    "gae",
    "k1",
    "k2",
    "k3",
    "k_wise_loss",
    "kl_estimate",
    "last_counted",
    "leave_one_out",
    "lengths_to_mask",
    "less_group_mean",
    "less_mean_of_others",
    "masked_moments",
    "masked_sum",
    "monte_carlo_returns",
    "over_tokens",
    "pad_sequences",
    "per_token_rewards",
    "plackett_luce_loss",
    "preference_accuracy",
    "regression_loss",
    "sequence_returns",
    "truncated_importance_weights",
    "whiten",
]
