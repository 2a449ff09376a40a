"""Estimators of the advantage: each reads the same trajectories, and `advantage_estimator` chooses one."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_rlhf.distributed import global_sum
from hf_rlhf.ops import (
    gae,
    leave_one_out,
    less_group_mean,
    less_mean_of_others,
    monte_carlo_returns,
    over_tokens,
    sequence_returns,
)
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.experience import Experience


@dataclass(frozen=True)
class ReturnMean:
    """Sum and number of the returns of earlier iterations, which weigh less with every iteration."""

    total: float = 0.0
    count: float = 0.0

    def with_iteration(self, returns: Tensor, counted: Tensor, decay: float) -> "ReturnMean":
        """Return it with the returns `(B,)` of this iteration, of all ranks; each of them takes part."""
        here = torch.stack([returns[counted].double().sum(), counted.double().sum()])
        total, count = global_sum(here).tolist()
        return ReturnMean(decay * self.total + total, decay * self.count + count)


def estimate_advantages(name: str, experience: Experience, config: PPOConfig, earlier: ReturnMean) -> Tensor:
    """Return the advantages `(B, T)` of the estimator `name`, before any whitening.

    Several ranks call it together. A row whose tokens do not count is in no baseline.

    Args:
        name: one of `hf_rlhf.ppo.rules.ESTIMATORS`.
        experience: of this rank, with `per_token_rewards`.
        config: has the discount, lambda and the size of a group.
        earlier: the returns of the iterations before, for `running_mean`.
    """
    rewards, mask, beyond = experience.per_token_rewards, experience.mask, experience.bootstrap
    assert rewards is not None
    if name == "gae":
        return gae(rewards, experience.values, mask, config.gamma, config.lam, beyond).advantages
    if name == "value":
        return gae(rewards, experience.values, mask, config.gamma, 1.0, beyond).advantages
    if name == "monte_carlo":
        return monte_carlo_returns(rewards, mask, config.gamma, beyond)
    if name == "dae":
        assert experience.fitted_advantages is not None
        return experience.fitted_advantages
    returns, counted = whole_returns(experience, config)
    if name == "running_mean":
        among = earlier.with_iteration(returns, counted, config.baseline_decay)
        total, count = returns.new_tensor(among.total), returns.new_tensor(among.count)
        returns = less_mean_of_others(returns, counted, total, count)
    elif name == "group":
        returns = less_group_mean(returns, counted, config.num_generations)
    elif name == "leave_one_out":
        returns = leave_one_out(returns, counted, config.num_generations)
    return over_tokens(returns, mask)


def whole_returns(experience: Experience, config: PPOConfig) -> tuple[Tensor, Tensor]:
    """Return the return of each completion `(B,)`, and which of them have a token that counts `(B,)`."""
    rewards, mask = experience.per_token_rewards, experience.mask
    assert rewards is not None
    return sequence_returns(rewards, mask, config.gamma, experience.bootstrap), mask.any(dim=1)


def known_estimators(experience: Experience, config: PPOConfig, *, learned: bool) -> list[str]:
    """Return the estimators whose numbers a run has: groups, a fitted advantage, a critic that has `learned`."""
    has: Mapping[str, bool] = {
        "reinforce": True,
        "monte_carlo": True,
        "running_mean": True,
        "value": learned,
        "gae": learned,
        "group": config.num_generations > 1,
        "leave_one_out": config.num_generations > 1,
        "dae": experience.fitted_advantages is not None,
    }
    return [name for name, known in has.items() if known]
