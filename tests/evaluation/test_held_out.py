"""The frontier of a run: rewards by KL, the peak of the held-out one, and the best of n."""

import itertools
import json
import math
from statistics import fmean

import pytest
from tiny import make_prompts, make_trainer

from hf_rlhf.evaluation.held_out import Frontier, Point, _best_of, best_of_n_points, read_evaluations


def points(*held_out, reward=(0.0, 1.0, 2.0), error=0.1):
    return [
        Point(kl, paid, score, error, step)
        for step, (kl, paid, score) in enumerate(zip((0.0, 2.0, 5.0), reward, held_out, strict=True))
    ]


@pytest.mark.parametrize(
    ("held_out", "reward", "turned"),
    [
        ((0.0, 1.0, 0.2), (0.0, 1.0, 2.0), True),
        ((0.0, 1.0, 0.9), (0.0, 1.0, 2.0), False),  # within the noise
        ((0.0, 0.5, 1.0), (0.0, 1.0, 2.0), False),
        ((0.0, 1.0, 0.2), (0.0, 1.0, 0.5), False),  # both fell: that is no over-optimization
    ],
)
def test_the_reward_that_turns_is_told_from_noise(held_out, reward, turned):
    frontier = Frontier("held", points(*held_out, reward=reward))
    assert frontier.turned is turned
    assert frontier.peak.held_out == max(held_out)
    assert frontier.in_words().startswith("over-optimized" if turned else "no over-optimization")


def test_the_best_of_k_is_the_mean_over_all_subsets():
    group = [(0.1, 5.0), (0.4, 1.0), (0.7, 3.0), (0.9, -2.0)]
    for k in (1, 2, 3, 4):
        best = [max(subset) for subset in itertools.combinations(group, k)]
        point = _best_of([group], k, 4)
        assert point.reward == pytest.approx(fmean(pair[0] for pair in best))
        assert point.held_out == pytest.approx(fmean(pair[1] for pair in best))
        assert point.kl == pytest.approx(math.log(k) - (k - 1) / k)


def length(prompts, completion_ids, **columns):
    return [float(len(ids)) for ids in completion_ids]


def test_the_best_of_n_of_a_policy_gets_more_of_what_chooses_it(tmp_path):
    def shortness(prompts, completion_ids, **columns):
        return [-float(len(ids)) for ids in completion_ids]

    trainer = make_trainer(tmp_path, reward=[length, shortness], reward_weights=[1.0, 0.0])
    found = best_of_n_points(trainer, list(trainer.prompt_set), "shortness", 4)
    assert [point.n for point in found] == [1, 2, 4]
    rewards = [point.reward for point in found]
    assert rewards == sorted(rewards)
    assert rewards[0] < rewards[-1]
    assert [point.held_out for point in found] == pytest.approx([-reward for reward in rewards])


def test_a_reward_of_weight_0_is_measured_and_is_no_reward_by_itself(tmp_path):
    def sometimes(prompts, completions, number, **columns):
        return [1.0 if each % 2 else None for each in number]

    trainer = make_trainer(tmp_path, reward=[sometimes, length], reward_weights=[1.0, 0.0], data=make_prompts(16))
    rows = [trainer.prompt_set[place] for place in range(4)]
    rewards = trainer.rollout_outside(rows, [1, 2, 3, 4]).rewards
    assert [reward.total for reward in rewards] == [1.0 if row["number"] % 2 else None for row in rows]
    assert all((reward.parts["length"] or 0) > 0 for reward in rewards)


def test_evaluations_are_read_with_their_errors(tmp_path):
    rows = [
        {"step": 0, "eval_kl": 0.0, "eval_reward": 1.0, "eval_rewards/held/mean": 2.0, "eval_rewards/held/std": 3.0},
        {"step": 4, "iteration": 1, "reward": 1.0},
        {"step": 4, "eval_kl": 1.0, "eval_reward": None, "eval_rewards/held/mean": 2.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_evaluations(tmp_path, "held", 9) == [Point(0.0, 1.0, 2.0, 1.0, 0)]
