"""The rewards of an environment, as one more part of the reward of each completion."""

from collections.abc import Sequence
from dataclasses import replace

from hf_rlhf.types import Reward, Trajectory

ENVIRONMENT = "environment"


def with_environment(
    rewards: Sequence[Reward] | None, trajectories: Sequence[Trajectory], weights: Sequence[float] = ()
) -> list[Reward]:
    """Return the rewards with what the environment paid, token by token; those alone where `rewards` is None.

    An episode whose environment failed has no reward, and neither has one to which no reward function gave a number.
    Where all `weights` are 0, the functions measure alone, and the environment is all that pays.
    """
    if rewards is None:
        rewards = [Reward(0.0) for _ in trajectories]
    elif not any(weights):
        rewards = [replace(reward, total=0.0) for reward in rewards]
    return [_added(reward, trajectory) for reward, trajectory in zip(rewards, trajectories, strict=True)]


def _added(reward: Reward, trajectory: Trajectory) -> Reward:
    paid = trajectory.env_rewards
    if paid is None or reward.total is None:
        given = None if paid is None else paid.sum().item()
        return Reward(None, {**reward.parts, ENVIRONMENT: given}, extra=reward.extra)
    total = paid.sum().item()
    per_token = paid if reward.per_token is None else reward.per_token + paid
    parts = {**reward.parts, ENVIRONMENT: total}
    return Reward(reward.total + total, parts, per_token, reward.extra)
