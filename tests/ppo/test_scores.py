import json
import math
import random
import statistics

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import tensor

from hf_rlhf.errors import InputError
from hf_rlhf.ppo.scores import ScoreShaper, ScoreShaping
from hf_rlhf.rewards.parts import PartShaping
from hf_rlhf.types import Completion, Reward, Trajectory

rewards_of_a_call = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20)


def completion(*, tokens=4, stopped=True):
    return Trajectory({"prompt": "a"}, [1], Completion(list(range(tokens)), [0.0] * tokens, stopped), "")


def shaper(**settings):
    return ScoreShaper(ScoreShaping(**{"max_completion_length": 10, **settings}))


def scores(rewards, shaper):
    shaped = shaper.shape([Reward(reward) for reward in rewards], [completion() for _ in rewards])
    return [None if score is None else score.last for score in shaped]


def paid(shaper, *rewarded):
    """Return the scores of rewards with their completions."""
    rewards, completions = zip(*rewarded, strict=True)
    return [score.last for score in shaper.shape(list(map(Reward, rewards)), completions)]


def spread(rewards):
    assume(statistics.pstdev(rewards) > 0.01)
    return statistics.pstdev(rewards)


# Scaling


def test_by_default_the_score_is_the_reward():
    assert scores([3.0, -1.5], shaper()) == [3.0, -1.5]


def test_scaling_and_centring_by_hand():
    # mean 4, population std 3
    assert scores([1.0, 7.0], shaper(scale=True)) == pytest.approx([1 / 3, 7 / 3], abs=1e-7)
    assert scores([1.0, 7.0], shaper(scale=True, center=True)) == pytest.approx([-1, 1], abs=1e-7)


def test_the_moments_run_on_and_hold_the_new_rewards_before_these_are_scaled():
    running = shaper(scale=True, center=True)
    scores([1.0, 7.0], running)
    # 1, 7, 4, 8: mean 5, variance (16 + 4 + 1 + 9) / 4 = 7.5
    assert scores([4.0, 8.0], running) == pytest.approx([-1 / math.sqrt(7.5), 3 / math.sqrt(7.5)], abs=1e-7)


@settings(deadline=None, max_examples=50)
@given(rewards_of_a_call, st.booleans())
def test_scores_of_the_first_call_have_a_spread_of_1(rewards, center):
    spread(rewards)
    scaled = scores(rewards, shaper(scale=True, center=center))
    assert statistics.pstdev(scaled) == pytest.approx(1, abs=1e-5)
    if center:
        assert statistics.fmean(scaled) == pytest.approx(0, abs=1e-5)
    else:
        assert all(score * reward >= 0 for score, reward in zip(scaled, rewards, strict=True))


@settings(deadline=None, max_examples=50)
@given(st.lists(rewards_of_a_call, min_size=1, max_size=5))
def test_the_moments_of_several_calls_are_those_of_all_rewards_together(calls):
    running, everything = shaper(), [reward for rewards in calls for reward in rewards]
    for rewards in calls:
        scores(rewards, running)
    mean, variance, count = running.moments
    assert mean.dtype == variance.dtype == torch.float64
    assert mean.item() == pytest.approx(statistics.fmean(everything), rel=1e-12, abs=1e-12)
    assert variance.item() == pytest.approx(statistics.pvariance(everything), rel=1e-10, abs=1e-10)
    assert count == len(everything)


@settings(deadline=None, max_examples=50)
@given(rewards_of_a_call, st.integers(0, 10**6))
def test_the_order_within_a_call_does_not_matter(rewards, seed):
    spread(rewards)
    order = random.Random(seed).sample(range(len(rewards)), len(rewards))
    straight = scores(rewards, shaper(scale=True, center=True))
    shuffled = scores([rewards[i] for i in order], shaper(scale=True, center=True))
    assert shuffled == pytest.approx([straight[i] for i in order], rel=1e-12, abs=1e-12)


def test_the_unscored_stay_unscored_and_out_of_the_moments():
    running = shaper(scale=True, center=True, missing_eos_penalty=1.0)
    rewards = [Reward(1.0), Reward(None), Reward(7.0)]
    first, unscored, last = running.shape(rewards, [completion(), completion(stopped=False), completion()])
    assert unscored is None
    assert [first.last, last.last] == pytest.approx([-1, 1], abs=1e-7)
    assert running.moments.count == 2


def test_an_iteration_without_any_reward_leaves_the_moments():
    running = shaper(scale=True)
    assert scores([None], running) == [None]
    assert running.moments is None
    scores([1.0, 7.0], running)
    assert scores([None, None], running) == [None, None]
    assert running.state_dict() == {"mean": 4.0, "variance": 9.0, "count": 2}


@settings(deadline=None, max_examples=50)
@given(st.floats(-1e6, 1e6), st.lists(st.integers(1, 50), min_size=1, max_size=4))
def test_equal_rewards_keep_their_size(reward, calls):
    scaled, centered = shaper(scale=True), shaper(scale=True, center=True)
    for size in calls:
        assert scores([reward] * size, scaled) == [reward] * size
        assert scores([reward] * size, centered) == pytest.approx([0] * size, abs=1e-9)


def test_the_rounding_of_equal_rewards_is_not_blown_up():
    noise = [0.3, 0.3 + 3e-8, 0.3 - 3e-8]  # one unit in the last place of fp32
    assert scores(noise, shaper(scale=True)) == noise
    assert scores(noise, shaper(scale=True, center=True)) == pytest.approx([0, 0, 0], abs=1e-7)


def test_a_small_spread_beyond_rounding_is_scaled():
    assert scores([1e-4, 3e-4], shaper(scale=True)) == pytest.approx([1, 3], rel=1e-3)
    assert scores([1.0, 1.0002], shaper(scale=True, center=True)) == pytest.approx([-1, 1], rel=1e-3)


# Clipping


def test_clipping_is_two_sided_and_after_scaling():
    assert scores([-9.0, -1.0, 0.5, 9.0], shaper(clip=2.0)) == [-2.0, -1.0, 0.5, 2.0]
    assert scores([1.0, 7.0], shaper(scale=True, clip=2.0)) == pytest.approx([1 / 3, 2], abs=1e-7)


def test_penalties_are_not_clipped():
    assert paid(shaper(clip=2.0, missing_eos_penalty=5.0), (9.0, completion(stopped=False))) == [-3.0]


# Penalties


def test_a_completion_that_did_not_stop_pays_for_it_after_scaling():
    scaling = shaper(scale=True, missing_eos_penalty=0.5)
    cut_off, stopped = paid(scaling, (1.0, completion(stopped=False)), (7.0, completion()))
    assert cut_off == pytest.approx(1 / 3 - 0.5, abs=1e-7)
    assert stopped == pytest.approx(7 / 3, abs=1e-7)


def test_every_token_pays_the_length_penalty():
    assert paid(shaper(length_penalty=0.25), (1.0, completion(tokens=8)), (1.0, completion(tokens=0))) == [-1.0, 1.0]


def test_only_counted_tokens_have_a_length():
    with_tool = completion(tokens=9)
    with_tool.mask = [True] * 3 + [False] * 4 + [True] * 2
    (score,) = paid(shaper(length_penalty=0.5, overlong_penalty=2.0, overlong_buffer=6), (1.0, with_tool))
    assert score == pytest.approx(1.0 - 5 * 0.5 - 2.0 / 6)  # five of ten, one of them in the buffer


@pytest.mark.parametrize(
    ("tokens", "penalty"), [(0, 0.0), (5, 0.0), (6, 0.0), (7, 0.5), (8, 1.0), (9, 1.5), (10, 2.0), (12, 2.0)]
)
def test_the_overlong_penalty_grows_linearly_over_the_buffer(tokens, penalty):
    assert paid(shaper(overlong_penalty=2.0, overlong_buffer=4), (1.0, completion(tokens=tokens))) == [1.0 - penalty]


def test_penalties_add_up():
    penalties = shaper(missing_eos_penalty=10.0, length_penalty=0.5, overlong_penalty=2.0, overlong_buffer=4)
    assert paid(penalties, (1.0, completion(tokens=9, stopped=False))) == [1.0 - 10.0 - 4.5 - 1.5]


def test_penalties_stay_out_of_the_moments():
    running = shaper(scale=True, length_penalty=100.0, clip=0.1)
    scores([1.0, 7.0], running)
    assert running.state_dict() == {"mean": 4.0, "variance": 9.0, "count": 2}


# Rewards given token by token


def test_a_reward_by_token_is_scaled_and_the_rest_is_paid_at_the_end():
    rewards = [Reward(7.0, per_token=tensor([3.0, 0.0, 1.5])), Reward(1.0)]  # 2.5 of the first for the whole
    shaping = shaper(scale=True, center=True, clip=0.9, missing_eos_penalty=0.25)
    by_token, whole = shaping.shape(rewards, [completion(tokens=3, stopped=False), completion()])
    torch.testing.assert_close(by_token.per_token, tensor([1.0, 0.0, 0.5]))
    assert by_token.total == pytest.approx(0.9 - 0.25)  # (7 - 4) / 3 = 1, clipped, less the penalty
    assert by_token.last == pytest.approx(0.9 - 0.25 - 1.5)
    assert whole.per_token is None
    assert rewards[0].per_token.tolist() == [3.0, 0.0, 1.5]
    assert rewards[0].total == 7.0


@settings(deadline=None, max_examples=50)
@given(
    rewards_of_a_call,
    st.integers(0, 10**6),
    st.sampled_from([(False, False), (True, False), (True, True)]),
    st.none() | st.floats(0.1, 3),
)
def test_token_by_token_or_at_the_end_a_reward_pays_the_same_in_all(rewards, seed, scaling, clip):
    rng = random.Random(seed)
    settings = {
        "scale": scaling[0],
        "center": scaling[1],
        "clip": clip,
        "missing_eos_penalty": 1.0,
        "length_penalty": 0.1,
        "overlong_penalty": 2.0,
        "overlong_buffer": 4,
    }
    completions, by_token = [], []
    for reward in rewards:
        completions.append(completion(tokens=rng.randint(0, 10), stopped=rng.random() < 0.5))
        generator = torch.Generator().manual_seed(rng.randrange(10**6))
        by_token.append(Reward(reward, per_token=torch.randn(len(completions[-1].completion.ids), generator=generator)))
    at_the_end = shaper(**settings).shape([Reward(reward) for reward in rewards], completions)
    for whole, part, reward in zip(at_the_end, shaper(**settings).shape(by_token, completions), by_token, strict=True):
        assert part.per_token.shape == reward.per_token.shape
        assert part.per_token.dtype == reward.per_token.dtype
        size = max(1.0, part.per_token.abs().sum().item())
        assert part.total == pytest.approx(whole.last, rel=1e-12, abs=1e-12 * size)


# Saving


@settings(deadline=None, max_examples=50)
@given(rewards_of_a_call, rewards_of_a_call)
def test_a_shaper_resumes_exactly_where_its_state_was_saved(first, second):
    running, resumed = shaper(scale=True, center=True), shaper(scale=True, center=True)
    scores(first, running)
    state = running.state_dict()
    resumed.load_state_dict(json.loads(json.dumps(state)))
    assert resumed.state_dict() == state
    assert scores(second, resumed) == scores(second, running)
    assert resumed.state_dict() == running.state_dict()


def test_the_state_before_the_first_reward_is_plain_json_too():
    resumed = shaper(scale=True)
    scores([5.0], resumed)
    resumed.load_state_dict(json.loads(json.dumps(shaper().state_dict(), allow_nan=False)))
    assert resumed.moments is None
    assert scores([1.0, 7.0], resumed) == pytest.approx([1 / 3, 7 / 3], abs=1e-7)


# Settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"center": True}, "use_score_norm needs use_score_scaling"),
        ({"clip": 0.0}, "score_clip=0.0 is invalid: it must be above 0"),
        ({"clip": -1.0}, "score_clip=-1.0 is invalid: it must be above 0"),
        ({"overlong_buffer": 11}, "overlong_buffer=11 is invalid: it must be from 0 to max_completion_length=10"),
        ({"overlong_buffer": -1}, "overlong_buffer=-1"),
        ({"overlong_penalty": 1.0}, "needs an overlong_buffer.*try 2"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        shaper(**wrong)


def test_settings_are_frozen():
    with pytest.raises(AttributeError):
        shaper().shaping.clip = 1.0


# Parts of a reward


def parted(**values):
    return Reward(math.nan if values else None, dict(values))  # the total is made of the parts


def test_parts_are_normalized_and_clipped_each_by_itself_and_then_weighted():
    parts = {
        "judge": PartShaping(weight=2.0, normalize=True),  # 1, 7: mean 4, std 3
        "length": PartShaping(weight=-1.0, clip=5.0),
        "plain": PartShaping(weight=0.5),
    }
    running = ScoreShaper(ScoreShaping(max_completion_length=10), parts)
    rewards = [parted(judge=1.0, length=9.0, plain=2.0), parted(judge=7.0, length=-3.0, plain=None), parted()]
    shaped = running.shape(rewards, [completion()] * 3)
    assert [score.last for score in shaped[:2]] == pytest.approx([-2 - 5 + 1, 2 + 3], abs=1e-7)
    assert shaped[2] is None


def test_a_normalized_part_is_clipped_in_standard_deviations_by_moments_that_run_on():
    running = ScoreShaper(ScoreShaping(max_completion_length=10), {"a": PartShaping(normalize=True, clip=1.0)})
    running.shape([parted(a=1.0), parted(a=7.0)], [completion()] * 2)
    # 1, 7, 4, 8: mean 5, variance 7.5
    shaped = running.shape([parted(a=4.0), parted(a=8.0)], [completion()] * 2)
    assert [score.last for score in shaped] == pytest.approx([-1 / math.sqrt(7.5), 1.0], abs=1e-7)


def test_moments_of_parts_are_restored_to_the_bit_from_json():
    parts = {"a": PartShaping(normalize=True), "b": PartShaping()}
    first, second = (ScoreShaper(ScoreShaping(max_completion_length=10, scale=True), parts) for _ in range(2))
    first.shape([parted(a=1 / 3, b=2.0), parted(a=2 / 7, b=1.0)], [completion()] * 2)
    state, of_parts = json.loads(json.dumps([first.state_dict(), first.parts_state_dict()]))
    second.load_state_dict(state, of_parts)
    following = [parted(a=0.1, b=0.2), parted(a=-5.0, b=0.3)]
    assert first.shape(following, [completion()] * 2) == second.shape(following, [completion()] * 2)
    second.load_state_dict(state, {})  # of a run that did not normalize
    assert second.parts_state_dict()["a"]["count"] == 4


def test_scores_of_a_users_loop_have_no_parts_and_stay():
    running = ScoreShaper(ScoreShaping(max_completion_length=10), {"a": PartShaping(normalize=True, weight=3.0)})
    assert running.shape([Reward(5.0, {"score": 5.0})], [completion()])[0].last == 5.0
