"""Gymnasium environments as text: what is shown, what is an action, and which end is which."""

import random
from functools import partial

import gymnasium
import pytest

from hf_rlhf.environments import CartPole, FrozenLake, GymText, Turn, check_env
from hf_rlhf.environments.gym_text import cart_in_words, parse_direction
from hf_rlhf.errors import InputError

ROW = {"prompt": "walk"}
TO_THE_GOAL = ["down", "down", "right", "right", "down", "right"]


def begun(env, row=ROW, seed=0):
    return env, env.reset(row, random.Random(seed))


def test_a_lake_is_crossed_in_words():
    env, prompt = begun(FrozenLake())
    assert prompt == "walk\nrow 1 column 1"
    turns = [env.step(f"I go {word}.") for word in TO_THE_GOAL]
    assert [turn.messages[0]["content"] for turn in turns[:-1]] == [
        "row 2 column 1", "row 3 column 1", "row 3 column 2", "row 3 column 3", "row 4 column 3",
    ]  # fmt: skip
    last = {"role": "user", "content": "row 4 column 4"}
    assert turns[-1] == Turn((last,), reward=1.0, terminated=True, info={"invalid": 0.0, "invalid_turns": 0.0})
    with pytest.raises(RuntimeError, match="over"):
        env.step("up")


def test_a_hole_terminates_and_the_limit_of_steps_truncates():
    env, _ = begun(FrozenLake())
    assert [env.step(word).terminated for word in ("right", "down")] == [False, True]
    env, _ = begun(FrozenLake())
    turns = [env.step("up") for _ in range(100)]
    assert [turn.truncated for turn in turns] == [False] * 99 + [True]
    assert not turns[-1].terminated


def test_progress_is_paid_and_a_hole_costs():
    env, _ = begun(FrozenLake(progress=True))
    assert [env.step(word).reward for word in ("up", "right", "left", *TO_THE_GOAL)] == [0, 1, -1, 1, 1, 1, 1, 1, 2]
    env, _ = begun(FrozenLake(progress=True, size=8, fallback=1))
    assert [env.step(word).reward for word in ("down", "wait")] == [1, 0.9]
    env, _ = begun(FrozenLake(progress=True))
    assert [env.step(word).reward for word in ("right", "down")] == [1, 1 - 4]


def test_text_that_is_no_action_takes_the_fallback_and_costs():
    env, _ = begun(FrozenLake(fallback=1, penalty=0.25))
    turn = env.step("I wait")
    assert turn.messages[0]["content"] == "row 2 column 1"
    assert (turn.reward, turn.info) == (-0.25, {"invalid": 1.0, "invalid_turns": 1.0})
    places = {begun(FrozenLake(), seed=seed)[0].step("wait").messages[0]["content"] for seed in range(20)}
    assert len(places) > 1  # by default the action is random
    wrong, _ = begun(GymText("FrozenLake-v1", str, lambda text: 9, fallback=1))
    assert wrong.step("x").info["invalid"] == 1.0


def test_an_observation_is_behind_the_last_message_of_the_user():
    prompt = [{"role": "system", "content": "be brave"}, {"role": "user", "content": "walk"}]
    env = FrozenLake(separator=" from ")
    assert begun(env, {"prompt": prompt})[1] == [prompt[0], {"role": "user", "content": "walk from row 1 column 1"}]
    assert prompt[1]["content"] == "walk"
    assert begun(FrozenLake(), {"prompt": prompt[:1]})[1][1]["content"] == "row 1 column 1"


def test_a_seed_of_the_row_or_else_the_episodes_chance_seeds_the_environment():
    first, again, other = (
        begun(CartPole(), ROW | row, seed)[1] for row, seed in (({"seed": 3}, 0), ({"seed": 3}, 1), ({}, 0))
    )
    assert first == again != other
    assert begun(CartPole(), seed=4)[1] == begun(CartPole(), seed=4)[1] != begun(CartPole(), seed=5)[1]


def test_words_of_the_examples():
    assert cart_in_words([0.011, -1, 0, 2.5]) == "position 0.01 velocity -1.00 angle 0.00 turning 2.50"
    assert [parse_direction(text) for text in ("LEFT", "not left but up", "upright", "")] == [0, 3, None, None]


@pytest.mark.parametrize("make_env", [FrozenLake, CartPole, partial(FrozenLake, is_slippery=True, size=8)])
def test_the_examples_keep_the_contract(make_env):
    check_env(make_env, [ROW, {"prompt": [{"role": "user", "content": "go"}], "seed": 7}])


def test_a_function_may_make_the_environment():
    env, prompt = begun(GymText(_wrapped, str, int))
    assert prompt == "walk\n[0.5]"
    assert env.step("0").terminated


def _wrapped():
    class One(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 1, (1,))
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return self.observation_space.low + 0.5, {}

        def step(self, action):
            return self.observation_space.low, 1.0, True, True, {}  # both: the end is real

    return One()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: GymText("Nowhere-v0", str, int).reset(ROW, random.Random(0)), "env=Nowhere-v0 is invalid"),
        (lambda: FrozenLake(size=5), "size=5"),
        (lambda: FrozenLake(penalty=-1.0), "penalty=-1.0"),
    ],
)
def test_what_is_no_environment_is_refused(make, reason):
    with pytest.raises(InputError, match=reason):
        make()
