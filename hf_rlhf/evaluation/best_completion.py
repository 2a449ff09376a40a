"""The best of several completions by a reward: how good a policy could answer if somebody chose for it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hf_rlhf.errors import InputError
from hf_rlhf.rewards.contract import Rewards
from hf_rlhf.rollout.collect import collect
from hf_rlhf.rollout.engines import Engine
from hf_rlhf.rollout.sampling import Sampling, row_seed
from hf_rlhf.types import Reward, Trajectory


class Best(NamedTuple):
    """The completion with the largest reward of `n`, its reward, and the rewards of all of them."""

    trajectory: Trajectory
    reward: Reward
    rewards: list[Reward]  # in the order in which they were sampled


def best_of_n(
    engine: Engine,
    rows: Sequence[Mapping[str, Any]],
    tokenizer,
    sampling: Sampling,
    seeds: Sequence[int],
    rewards: Rewards,
    n: int,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[Best]:
    """Sample `n` completions for each row, and return the best of each by its reward.

    The first of equal ones is taken, and one without a reward only where none has any. The first completion is the one
    that `collect` draws by the same seed, so that n = 1 is plain sampling.

    Args:
        engine, rows, tokenizer, sampling, seeds, chat_template_kwargs: as in `collect`.
        rewards: say which one is best.
        n: at least 1.
    """
    if n < 1:
        raise InputError(f"n={n} is invalid: the best of no completion is none. Take at least 1.")
    draws = [row_seed("best of n", seed, number) if number else seed for seed in seeds for number in range(n)]
    several = [row for row in rows for _ in range(n)]
    trajectories = collect(engine, several, tokenizer, sampling, draws, chat_template_kwargs)
    totals = rewards.compute(trajectories).rewards
    return [
        _best(trajectories[start : start + n], totals[start : start + n]) for start in range(0, len(trajectories), n)
    ]


def _best(trajectories: Sequence[Trajectory], rewards: list[Reward]) -> Best:
    def by_reward(number: int) -> tuple[bool, float]:
        total = rewards[number].total
        return (total is not None, total or 0.0)

    number = max(range(len(rewards)), key=by_reward)
    return Best(trajectories[number], rewards[number], rewards)
