"""The frontier of a run: rewards by KL, the peak of the held-out one, and the best of n."""

import itertools
import json
import math
from statistics import fmean

import pytest
from tiny import make_prompts, make_trainer

from hf_rlhf.evaluation.held_out import Frontier, Point, _best_of, _in_order, best_of_n_points, read_evaluations


def points(*held_out, reward=(0.0, 1.0, 2.0), error: float | None = 0.1):
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
    evaluations = points(*held_out, reward=reward)
    frontier = Frontier("held", evaluations, evaluations[1])
    assert frontier.turned is turned
    assert frontier.peak.held_out == max(held_out)
    assert frontier.in_words().startswith("over-optimized" if turned else "no over-optimization")
    assert "The policy of update 1 is saved" in frontier.in_words()
    assert not Frontier("held", points(*held_out, reward=reward, error=None), evaluations[1]).turned


def test_a_start_that_is_better_than_what_was_saved_is_named():
    evaluations = points(1.0, 0.2, 0.1)
    words = Frontier("held", evaluations, evaluations[1]).in_words()
    assert "The policy of update 1 is saved, with 0.2. It is worse by this reward than the start, with 1." in words


def test_the_noise_that_is_allowed_grows_with_the_number_of_evaluations():
    flat = [Point(1.0, step / 100, 0.29 if step == 3 else 0.0, 0.1, step) for step in range(40)]
    assert not Frontier("held", flat, flat[3]).turned
    assert Frontier("held", [flat[0], flat[3], flat[-1]], flat[3]).turned is False
    assert Frontier("held", [flat[3], flat[-1]], flat[3]).turned


def test_the_best_of_k_of_equal_rewards_is_the_mean():
    group = _in_order([(1.0, 5.0), (1.0, 1.0), (1.0, 3.0), (1.0, -2.0)])
    assert [_best_of([group], k, 4).held_out for k in (1, 2, 4)] == pytest.approx([1.75] * 3)


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
    assert read_evaluations(tmp_path, "held", 10) == [Point(0.0, 1.0, 2.0, 1.0, 0)]
