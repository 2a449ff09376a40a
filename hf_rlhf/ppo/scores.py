"""From rewards to scores, the numbers PPO pays: scaling, clipping, penalties on a missing end and on length.

The parts of a reward are normalized and clipped first, each by itself (`hf_rlhf.rewards.parts`).

An evaluation reports the rewards as they were given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch

from hf_rlhf.distributed import gather_numbers
from hf_rlhf.errors import InputError
from hf_rlhf.ops.masked import STD_EPS, Moments, combine, masked_moments
from hf_rlhf.rewards.parts import PartShaping
from hf_rlhf.types import Reward, Score, Trajectory

_AS_GIVEN = PartShaping()  # of what an environment pays
NO_SPREAD = 1e-6
"""A standard deviation below this share of the rewards' size is rounding in fp32, and not a difference between them."""


@dataclass(frozen=True, kw_only=True)
class ScoreShaping:
    """Settings that turn rewards into scores: `score = clip((reward - mean) / (std + 1e-8), -clip, clip) - penalty`.

    Raises `InputError` for settings that contradict each other.
    """

    scale: bool = False  # divide by the running standard deviation (TRL's use_score_scaling)
    center: bool = False  # subtract the running mean first; only together with `scale` (TRL's use_score_norm)
    clip: float | None = None  # largest size before the penalties
    missing_eos_penalty: float = 0.0  # paid by a completion that did not stop
    length_penalty: float = 0.0  # paid for each token
    overlong_penalty: float = 0.0  # paid at `max_completion_length`, and in part on the way there
    overlong_buffer: int = 0  # tokens before `max_completion_length` over which that grows
    max_completion_length: int  # tokens

    def __post_init__(self):
        if self.center and not self.scale:
            raise InputError(
                "use_score_norm needs use_score_scaling: it subtracts the mean before that divides by the standard"
                " deviation; switch both on"
            )
        if self.clip is not None and self.clip <= 0:
            raise InputError(f"score_clip={self.clip} is invalid: it must be above 0. Omit it for no clipping.")
        if not 0 <= self.overlong_buffer <= self.max_completion_length:
            raise InputError(
                f"overlong_buffer={self.overlong_buffer} is invalid: it must be from 0 to max_completion_length="
                f"{self.max_completion_length}"
            )
        if self.overlong_penalty and not self.overlong_buffer:
            raise InputError(
                f"overlong_penalty={self.overlong_penalty} needs an overlong_buffer, the tokens over which it grows;"
                f" try {max(self.max_completion_length // 5, 1)}"
            )

    def penalty(self, trajectory: Trajectory) -> float:
        """Compute `missing_eos_penalty * [not stopped] + length_penalty * n + overlong_penalty * excess(n)`.

        n is the number of counted tokens.
        """
        tokens = sum(trajectory.completion_mask)
        missing_eos = 0.0 if trajectory.completion.stopped else self.missing_eos_penalty
        return missing_eos + self.length_penalty * tokens + self.overlong_penalty * self._excess(tokens)

    def _excess(self, tokens: int) -> float:
        """Compute `clip((n - (L - buffer)) / buffer, 0, 1)`, L the longest length.

        Yu 2025, arXiv 2503.14476, eq. 13, negated.
        """
        if not self.overlong_buffer:
            return 0.0
        into_buffer = tokens - (self.max_completion_length - self.overlong_buffer)
        return min(max(into_buffer / self.overlong_buffer, 0.0), 1.0)


class RunningMoments:
    """Mean, population variance and number of all values so far, in float64, the same on every rank.

    Attributes:
        moments: None before the first value.
    """

    def __init__(self):
        self.moments: Moments | None = None

    def take_in(self, share: Sequence[float | None]) -> None:
        """Take in the values of all ranks, each of which gives its own; None does not count."""
        rewards = [value for value in gather_numbers(share) if value is not None]
        if rewards:
            values = torch.tensor(rewards, dtype=torch.float64)
            new = masked_moments(values, torch.ones_like(values, dtype=torch.bool))
            self.moments = new if self.moments is None else combine(self.moments, new)

    @property
    def mean(self) -> float:
        """Mean of the values; 0 before the first."""
        return 0.0 if self.moments is None else self.moments.mean.item()

    @property
    def divisor(self) -> float:
        """Standard deviation + 1e-8; 1 where all values are the same, which no division can spread."""
        if self.moments is None:
            return 1.0
        mean, variance = self.moments.mean.item(), self.moments.variance.item()
        without_spread = variance <= NO_SPREAD**2 * (mean**2 + variance)
        return 1.0 if without_spread else variance**0.5 + STD_EPS

    def state_dict(self) -> dict[str, float]:
        """Return the moments as plain numbers, to the last bit."""
        if self.moments is None:
            return {"mean": 0.0, "variance": 0.0, "count": 0}
        return {name: value.item() for name, value in self.moments._asdict().items()}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore the moments of `state_dict`."""
        mean, variance = (torch.tensor(state[name], dtype=torch.float64) for name in ("mean", "variance"))
        self.moments = Moments(mean, variance, torch.tensor(int(state["count"]))) if state["count"] else None


class ScoreShaper:
    """Shaper of rewards into scores, one iteration after the other.

    Args:
        shaping: the settings of the whole reward.
        parts: those of each part, by its name; see `Rewards.shapings`.
    """

    def __init__(self, shaping: ScoreShaping, parts: Mapping[str, PartShaping] | None = None):
        self.shaping = shaping
        self.parts = dict(parts or {})
        self._of_rewards = RunningMoments()
        self._of_parts = {name: RunningMoments() for name, part in self.parts.items() if part.normalize}

    @property
    def moments(self) -> Moments | None:
        """Moments of all rewards so far, their parts shaped; None before the first."""
        return self._of_rewards.moments

    def shape(self, rewards: Sequence[Reward], trajectories: Sequence[Trajectory]) -> list[Score | None]:
        """Return the score of each reward, None without a reward, by moments that hold these rewards already.

        Every rank gives its own completions and takes part; all hold the same moments, of the rewards of all. A reward
        that was given token by token is divided by token as the whole is. What centering, clipping and penalties
        change besides is paid on the last token, so that `Score.total` is the shaped reward.
        """
        for name, running in self._of_parts.items():
            running.take_in([reward.parts.get(name) for reward in rewards])
        totals = [self._sum_of_parts(reward) for reward in rewards]
        self._of_rewards.take_in(totals)
        rows = zip(rewards, totals, trajectories, strict=True)
        return [self._score(reward, total, trajectory) for reward, total, trajectory in rows]

    def _sum_of_parts(self, reward: Reward) -> float | None:
        """Compute `sum_i weight_i * clip((part_i - mean_i) / divisor_i, -clip_i, clip_i)` over the scored parts.

        A loop with `step` brings totals of its own, without these parts.
        """
        if reward.total is None or not any(self.parts[name].shaped for name in self.parts if name in reward.parts):
            return reward.total
        return sum(self._shaped_part(name, value) for name, value in reward.parts.items() if value is not None)

    def _shaped_part(self, name: str, value: float) -> float:
        part = self.parts.get(name, _AS_GIVEN)
        if part.normalize:
            value = (value - self._of_parts[name].mean) / self._of_parts[name].divisor
        return part.weight * min(max(value, -part.clip), part.clip)

    def _score(self, reward: Reward, reward_total: float | None, trajectory: Trajectory) -> Score | None:
        if reward_total is None:
            return None
        total = self._shaped(reward_total) - self.shaping.penalty(trajectory)
        if reward.per_token is None:
            return Score(total)
        per_token = reward.per_token / self._divisor
        return Score(total - per_token.double().sum().item(), per_token)

    def state_dict(self) -> dict[str, float]:
        """Return the running moments of the rewards as plain numbers, to the last bit."""
        return self._of_rewards.state_dict()

    def parts_state_dict(self) -> dict[str, dict[str, float]]:
        """Return those of each normalized part, by its name."""
        return {name: running.state_dict() for name, running in self._of_parts.items()}

    def load_state_dict(
        self, state: Mapping[str, float], parts: Mapping[str, Mapping[str, float]] = MappingProxyType({})
    ) -> None:
        """Restore the moments of `state_dict` and `parts_state_dict`; those of a part that is new start anew."""
        self._of_rewards.load_state_dict(state)
        for name in self._of_parts.keys() & parts.keys():
            self._of_parts[name].load_state_dict(parts[name])

    def _shaped(self, reward: float) -> float:
        centered = reward - self._of_rewards.mean if self.shaping.center else reward
        scaled = centered / self._divisor
        return scaled if self.shaping.clip is None else min(max(scaled, -self.shaping.clip), self.shaping.clip)

    @property
    def _divisor(self) -> float:
        """Number that rewards are divided by; 1 if they are not scaled."""
        return self._of_rewards.divisor if self.shaping.scale else 1.0
