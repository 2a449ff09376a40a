"""Rewards that are computed while the next completions are sampled."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

from hf_rlhf.ppo.experience import Rollout
from hf_rlhf.types import Reward, Trajectory


def sample_and_reward_in_parts(
    sample: Callable[[Sequence[Mapping[str, Any]], Sequence[int]], list[Trajectory]],
    compute_rewards: Callable[[Sequence[Trajectory]], list[Reward]],
    rows: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
    size: int,
    *,
    waiting: AbstractContextManager[None],
) -> Rollout:
    """Sample `size` rows at a time, and compute the rewards of each part in a second thread meanwhile.

    The parts are of similar length. `waiting` is entered while only the last rewards are waited for. Raises what a
    reward raised, as soon as it is known.
    """
    by_length = sorted(range(len(rows)), key=lambda row: len(rows[row]["prompt_ids"]))
    parts = [by_length[start : start + size] for start in range(0, len(rows), size)]
    trajectories: dict[int, Trajectory] = {}
    pending: list[Future[list[Reward]]] = []
    rewarder = ThreadPoolExecutor(1)
    try:
        for part in parts:
            sampled = sample([rows[row] for row in part], [seeds[row] for row in part])
            pending.append(rewarder.submit(compute_rewards, sampled))
            trajectories.update(zip(part, sampled, strict=True))
            for each in pending:
                if each.done():
                    each.result()
        with waiting:
            by_part = [each.result() for each in pending]
    finally:
        rewarder.shutdown(cancel_futures=True)
    rewards = {
        row: reward
        for part, part_rewards in zip(parts, by_part, strict=True)
        for row, reward in zip(part, part_rewards, strict=True)
    }
    return Rollout([trajectories[row] for row in range(len(rows))], [rewards[row] for row in range(len(rows))])
