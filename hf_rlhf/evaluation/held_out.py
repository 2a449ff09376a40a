"""Over-optimization: the rewards that are trained on, beside a held-out one that is not, by the KL that they cost.

Gao, Schulman and Hilton, Scaling Laws for Reward Model Overoptimization, 2022 (arXiv:2210.10760): the reward that is
optimized keeps rising, while one that is not turns.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING, Any

from hf_rlhf.records import evaluation_rows, write_whole
from hf_rlhf.rollout.sampling import row_seed

if TYPE_CHECKING:
    from hf_rlhf.ppo.trainer import PPOTrainer

OVER_OPTIMIZATION_FILE, FRONTIER_FILE = "over_optimization.json", "frontier.png"
MOST_PROMPTS = 64  # that the best of n is measured on


@dataclass(frozen=True, slots=True)
class Point:
    """Rewards of one policy: the one that is trained on, and the held-out one.

    Attributes:
        kl: nats of a completion.
        reward, held_out: means over completions.
        error: standard error of `held_out`; None where it is not known.
        step: updates made; None for the best of n.
        n: completions that the best was chosen from; 1 for a policy.
    """

    kl: float
    reward: float
    held_out: float
    error: float | None = None
    step: int | None = None
    n: int = 1


@dataclass(frozen=True)
class Frontier:
    """The evaluations of a run by their KL, and the best of n completions of its start, by the reward.

    Attributes:
        name: of the held-out reward.
        evaluations: in the order of the run.
        saved: that of the checkpoint that was saved: never that of the start, which has none.
        best_of_n: for n = 1, 2, 4, ...; empty where it was not measured.
    """

    name: str
    evaluations: Sequence[Point]
    saved: Point
    best_of_n: Sequence[Point] = ()

    @property
    def peak(self) -> Point:
        """The evaluation with the best held-out reward; the first of equal ones."""
        return max(self.evaluations, key=lambda point: point.held_out)

    @property
    def turned(self) -> bool:
        """True where the held-out reward ended below its peak by more than noise, and the other did not.

        The peak is the best of many evaluations, so the noise is that of the best: at 5 % for all of them together.
        """
        last, peak = self.evaluations[-1], self.peak
        if last.error is None or peak.error is None or last is peak:
            return False
        errors = NormalDist().inv_cdf(1 - 0.025 / (len(self.evaluations) - 1))
        noise = errors * math.hypot(last.error, peak.error)
        return peak.held_out - last.held_out > noise and last.reward >= peak.reward

    def in_words(self) -> str:
        """Return the result in a sentence or two."""
        first, last, peak, saved = self.evaluations[0], self.evaluations[-1], self.peak, self.saved
        reward = f"the reward went from {first.reward:.3g} to {last.reward:.3g}"
        kept = f"The policy of update {saved.step} is saved, with {saved.held_out:.3g}."
        if saved.held_out < peak.held_out:
            kept += f" It is worse by this reward than the start, with {peak.held_out:.3g}."
        if self.turned:
            return (
                f"over-optimized: {reward}, while the held-out reward {self.name} peaked after update {peak.step} at"
                f" {peak.held_out:.3g} and ended at {last.held_out:.3g}. {kept}"
            )
        return (
            f"no over-optimization seen: {reward}, and the held-out reward {self.name} from {first.held_out:.3g} to"
            f" {last.held_out:.3g}. {kept}"
        )

    def write(self, folder: Path) -> Path:
        """Write over_optimization.json into `folder`; return its path."""
        content = {
            "held_out_reward": self.name,
            "verdict": self.in_words(),
            "over_optimized": self.turned,
            "peak": asdict(self.peak),
            "saved": asdict(self.saved),
            "evaluations": [asdict(point) for point in self.evaluations],
            "best_of_n": [asdict(point) for point in self.best_of_n],
        }
        return write_whole(folder / OVER_OPTIMIZATION_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_evaluations(folder: Path, name: str, rows: int) -> list[Point]:
    """Return the evaluations of the run in `folder`, each on `rows` prompts, by the held-out reward `name`."""
    held_out, spread = (f"eval_{metric}" for metric in (f"rewards/{name}/mean", f"rewards/{name}/std"))
    points = []
    for row in evaluation_rows(folder):
        kl, reward, score = (row.get(key) for key in ("eval_kl", "eval_reward", held_out))
        if kl is not None and reward is not None and score is not None:
            std = row.get(spread)
            error = None if std is None or rows < 2 else std / math.sqrt(rows - 1)
            points.append(Point(kl, reward, score, error, row["step"]))
    return points


def best_of_n_points(trainer: "PPOTrainer", rows: Sequence[Mapping[str, Any]], name: str, n: int) -> list[Point]:
    """Return what the best of 1, 2, 4, ... up to `n` completions of the policy gets, chosen by the reward.

    Of `n` completions of each prompt, every subset counts as much, so the estimate is without bias. The best of k is at
    most log k - (k - 1) / k nats from the policy (Beirami et al., 2024, arXiv:2401.01879). Every rank takes part.

    Args:
        trainer: whose policy samples, and whose rewards choose.
        rows: prepared prompts; up to `MOST_PROMPTS` of them are used.
        name: of the held-out reward.
        n: completions of each prompt.
    """
    several = [row for row in rows[:MOST_PROMPTS] for _ in range(n)]
    seeds = [row_seed(trainer.args.seed, "frontier", number) for number in range(len(several))]
    rewards = trainer.rollout_outside(several, seeds).rewards
    whole = []
    for start in range(0, len(rewards), n):
        pairs = [(reward.total, reward.parts[name]) for reward in rewards[start : start + n]]
        scored = [(total, held_out) for total, held_out in pairs if total is not None and held_out is not None]
        if len(scored) == n:
            whole.append(_in_order(scored))
    sizes = [size for power in range(n.bit_length()) if (size := 2**power) <= n]
    return [_best_of(whole, size, n) for size in sizes] if whole else []


def _in_order(group: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the completions of a prompt in the order of their rewards; equal ones share their held-out reward."""
    found: dict[float, list[float]] = {}
    for reward, held_out in group:
        found.setdefault(reward, []).append(held_out)
    return [(reward, fmean(found[reward])) for reward in sorted(found) for _ in found[reward]]


def _best_of(groups: Sequence[Sequence[tuple[float, float]]], k: int, n: int) -> Point:
    """Return the mean over groups of `n`, each in the order of its rewards, of the best of `k` among them."""
    weights = [math.comb(place, k - 1) / math.comb(n, k) for place in range(n)]
    reward, held_out = (
        fmean(sum(weight * pair[column] for weight, pair in zip(weights, group, strict=True)) for group in groups)
        for column in (0, 1)
    )
    return Point(math.log(k) - (k - 1) / k, reward, held_out, n=k)
