"""A simulated user who clicks: what the policy sees and what pays."""

import random

import pytest

from hf_rlhf.environments import Recommendation, check_env, load_environment
from hf_rlhf.errors import InputError


def user(seed=0, **settings):
    env = Recommendation(**settings)
    return env, env.reset({"prompt": "recommend"}, random.Random(seed))


def test_the_taste_is_in_the_prompt_as_clicks_and_an_item_of_that_kind_is_in_the_list():
    liked = set()
    for seed in range(20):
        env, prompt = user(seed, items=3, history=40, liked=1.0, other=0.0)
        asked, clicked, ignored, *items = prompt.splitlines()
        assert (asked, clicked.split()[0], ignored.split()[0]) == ("recommend", "clicked:", "ignored:")
        [kind] = set(clicked.split()[1:])
        assert kind not in ignored.split()
        assert len(clicked.split()) + len(ignored.split()) == 42
        assert [item.split()[0] for item in items] == ["1", "2", "3"]
        assert kind in [item.split()[1] for item in items]
        turn = env.step(f"I take {kind}!")
        assert (turn.reward, turn.terminated, turn.info) == (1.0, True, {"invalid": 0.0, "best": 1.0})
        liked.add((kind, [item.split()[1] for item in items].index(kind)))
    assert len({kind for kind, _ in liked}) > 3
    assert {place for _, place in liked} == {0, 1, 2}


def test_equal_users_click_alike_whatever_was_chosen_before_and_a_number_is_as_good_as_a_name():
    clicks = [[user(seed)[0].step(str(item)).reward for item in (1, 2, 3, 4)] for seed in range(30)]
    assert clicks == [[user(seed)[0].step(f"no, {item}").reward for item in (1, 2, 3, 4)] for seed in range(30)]
    by_name = user(3)[1].splitlines()[-1].split()[1]
    assert user(3)[0].step(by_name.upper()).reward == clicks[3][3]
    assert 0.2 < sum(map(sum, clicks)) / 120 < 0.4  # of items at random


def test_text_that_names_no_item_gets_no_click():
    for text in ("", "5", "something", "12"):
        turn = user()[0].step(text)
        assert (turn.reward, turn.info["invalid"]) == (0.0, 1.0)


def test_it_keeps_the_contract_and_has_a_name():
    make_env = load_environment("recommendation:items=2,kinds=a b c,history=3,liked=0.8,other=0.2")
    check_env(make_env, [{"prompt": "x"}, {"prompt": [{"role": "user", "content": "x"}]}])
    assert make_env().kinds == ("a", "b", "c")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"items": 7}, "items=7 is invalid"), ({"items": 1}, "items=1"), ({"liked": 0.1}, "liked=0.1"), ({"history": -1}, "history=-1")],
)  # fmt: skip
def test_what_is_no_user_is_refused(settings, reason):
    with pytest.raises(InputError, match=reason):
        Recommendation(**settings)


@pytest.mark.parametrize("kinds", [("hip-hop", "soup", "jazz", "news"), ("1", "2", "3", "4"), ("a", "a", "b", "c")])
def test_kinds_that_no_completion_could_name_are_refused(kinds):
    with pytest.raises(InputError, match="one word that is no number, and no two are equal"):
        Recommendation(kinds=kinds)
