"""The rewards of an environment, as one more part of the reward of each completion."""

from collections.abc import Sequence

from hf_rlhf.types import Reward, Trajectory

ENVIRONMENT = "environment"


def with_environment(rewards: Sequence[Reward] | None, trajectories: Sequence[Trajectory]) -> list[Reward]:
    """Return the rewards with what the environment paid, token by token; those alone where `rewards` is None.

    An episode whose environment failed has no reward.
    """
    if rewards is None:
        rewards = [Reward(0.0) for _ in trajectories]
    return [_added(reward, trajectory) for reward, trajectory in zip(rewards, trajectories, strict=True)]


def _added(reward: Reward, trajectory: Trajectory) -> Reward:
    paid = trajectory.env_rewards
    if paid is None:
        return Reward(None, {**reward.parts, ENVIRONMENT: None}, extra=reward.extra)
    total = paid.sum().item()
    per_token = paid if reward.per_token is None else reward.per_token + paid
    parts = {**reward.parts, ENVIRONMENT: total}
    return Reward((reward.total or 0.0) + total, parts, per_token, reward.extra)
