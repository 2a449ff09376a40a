"""Segments of a game: where it is cut, what is shown, who pays, and which pairs are compared."""

import random
from functools import partial
from typing import Any

import pytest
from environments.games import GuessNumber, TwoTurns
from environments.playing import SAMPLING, play, rows_of

from hf_rlhf.environments import (
    CartPole,
    Dialogue,
    FrozenLake,
    Segmented,
    ToolUse,
    Turn,
    check_env,
    comparisons,
    play_segments,
)
from hf_rlhf.environments.episode import EpisodeLimits
from hf_rlhf.environments.segments import TRUE_RETURN, Segment
from hf_rlhf.errors import InputError
from hf_rlhf.rollout.engines import TransformersEngine

LAKE = partial(FrozenLake, progress=True, separator=" ")
TO_THE_GOAL = ["down", "down", "right", "right", "down", "right"]
MESSAGES = [{"role": "system", "content": "be brave"}, {"role": "user", "content": "walk"}]


def begun(prompt: Any = "walk", make_env: Any = LAKE, **settings):
    env = Segmented(make_env, **settings)
    env.reset({"prompt": prompt}, random.Random(0))
    return env


def lengths(prompts, completions, **columns):
    lengths.calls.append((prompts, completions))
    return [float(len(str(completion))) for completion in completions]


def test_an_episode_is_cut_after_so_many_turns_and_where_the_game_ends():
    env = begun()
    turns = [env.step(word) for word in TO_THE_GOAL]
    first, last = env.segments
    assert first == Segment(
        "walk",
        "\nrow 1 column 1\n> down\nrow 2 column 1\n> down\nrow 3 column 1\n> right\nrow 3 column 2\n> right\nrow 3 column 3",
        4.0,
    )
    assert last.text == "\nrow 3 column 3\n> down\nrow 4 column 3\n> right\nrow 4 column 4\n(end)"
    assert last.true_return == 3.0  # two fields, and the goal
    assert [turn.reward for turn in turns] == [0.0] * 6  # the game's reward is hidden
    assert [turn.info[TRUE_RETURN] for turn in turns] == [1.0, 2.0, 3.0, 4.0, 5.0, 7.0]
    assert [turn.terminated for turn in turns] == [False] * 5 + [True]


def test_the_prompt_of_a_segment_is_the_rows_and_what_was_shown_behind_it_is_in_the_segment():
    env = begun(MESSAGES, turns=1)
    env.step("right")
    assert env.segments[0].prompt == MESSAGES
    assert env.segments[0].completion == [{"role": "assistant", "content": "row 1 column 1\n> right\nrow 1 column 2"}]
    silent = begun("hello", TwoTurns, turns=2)
    silent.step("a")
    assert silent.step("b c").terminated
    assert silent.segments[0].text.splitlines()[:2] == ["", "> a"]
    assert silent.segments[0].true_return == 3.0


def test_a_reward_pays_each_segment_on_its_last_turn_and_all_that_end_together_in_one_call():
    lengths.calls = []
    envs = [begun(turns=2, reward=lengths) for _ in range(2)] + [begun(MESSAGES, turns=3, reward=lengths)]
    moves = [("right", "down"), ("down", "down"), ("left", "left")]
    turns = [Segmented.step_all(envs, each) for each in zip(*moves, strict=True)]
    assert [turn.reward for turn in turns[0]] == [0.0] * 3
    hole, dry = envs[0].segments[0], envs[1].segments[0]
    assert hole.text.endswith("\nrow 2 column 2\n(end)")
    assert hole.true_return == 1 + 1 - 4
    assert [turn.reward for turn in turns[1]] == [float(len(hole.text)), float(len(dry.text)), 0.0]
    assert lengths.calls == [(["walk", "walk"], [hole.text, dry.text])]


def test_a_render_of_ones_own_is_what_people_and_rewards_read():
    lengths.calls = []
    env = begun(MESSAGES, turns=2, reward=lengths, render=lambda turns, shown, ended: f"{len(turns)} {shown} {ended}")
    env.step("down")
    env.step("down")
    assert lengths.calls == [([MESSAGES], [[{"role": "assistant", "content": "2 row 3 column 1 False"}]])]


def test_the_contract_is_kept_whatever_the_game():
    dialogue = partial(Dialogue, ["why ?", "and ?"])
    for game in (CartPole, LAKE, dialogue):  # the last has step_all
        check_env(partial(Segmented, game, turns=3, reward=_constant), [{"prompt": "walk"}, {"prompt": MESSAGES}])


def _constant(prompts, completions):
    return [0.5] * len(completions)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Segmented(LAKE, turns=0), "turns=0 is invalid"),
        (lambda: Segmented(partial(ToolUse, [_add])), "segments are of games without tools"),
    ],
)
def test_what_cannot_be_cut_is_refused(make, reason):
    with pytest.raises(InputError, match=reason):
        make()


def _add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


def test_what_a_policy_plays_is_cut_the_same_in_every_batch(model, tokenizer):
    rows = [{**row, "number": 2} for row in rows_of(tokenizer, 4)]
    seeds = [10, 11, 12, 13]
    limits = EpisodeLimits(max_turns=5)

    def cut(batch_size, part):
        engine = TransformersEngine(model, tokenizer, batch_size)
        return play_segments(engine, rows[part], tokenizer, SAMPLING, seeds[part], GuessNumber, limits, turns=2)

    whole = cut(None, slice(0, 4))
    assert whole == cut(1, slice(0, 2)) + cut(3, slice(2, 4))
    assert len(whole) == 8  # three tries each: two turns, and one
    [trajectory] = play(model, tokenizer, rows[:1], partial(Segmented, GuessNumber, turns=2, reward=_constant), limits)
    assert trajectory.env_rewards.sum().item() == 1.0  # two segments


def test_pairs_are_of_one_prompt_all_different_and_the_same_for_a_seed():
    segments = [Segment(prompt, f"\n{n}", float(n)) for prompt in ("a", "b") for n in (1, 2, 3, 3)]
    rows = comparisons(segments, 6, seed=1)
    assert {(row["prompt"], *sorted(row["completions"])) for row in rows} == {
        (prompt, f"\n{one}", f"\n{other}") for prompt in "ab" for one, other in ((1, 2), (1, 3), (2, 3))
    }
    assert all([float(text) for text in row["completions"]] == row["ratings"] for row in rows)
    assert rows == comparisons(segments, 6, seed=1) != comparisons(segments, 6, seed=2)
    with pytest.raises(InputError, match="comparisons=7 is invalid: the 8 segments that were played have 6 different"):
        comparisons(segments, 7)


class PaysAtTheLimit(TwoTurns):
    def at_limit(self):
        return Turn(reward=5.0, terminated=True)


@pytest.mark.parametrize(("played", "own"), [(1, [5.0]), (2, [6.0])])
def test_a_game_that_pays_at_a_limit_pays_into_its_last_segment(played, own):
    env = begun(make_env=PaysAtTheLimit, turns=2, reward=lengths)
    lengths.calls = []
    for _ in range(played - 1):
        env.step("on")
    env._open.append(("here", "on"))  # a turn that has not ended its segment
    env._paid.append(0.0)
    end = env.at_limit()
    assert end.terminated
    assert end.info[TRUE_RETURN] == env.true_return == own[0]
    assert [env.segments[-1].true_return] == own
    assert end.reward == float(len(env.segments[-1].text))


def test_a_game_without_a_payment_at_a_limit_has_none_in_segments():
    assert not hasattr(begun(make_env=TwoTurns), "at_limit")
