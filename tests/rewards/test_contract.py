import asyncio

import numpy
import pytest
import torch

from hf_rlhf.errors import InputError
from hf_rlhf.rewards.contract import Rewards
from hf_rlhf.types import Completion, Trajectory


def trajectory(prompt, text, **columns):
    return Trajectory(
        row={"prompt": prompt, "prompt_ids": [1], **columns},
        prompt_ids=[1],
        completion=Completion(ids=[len(text), 2], logprobs=[0.0, 0.0], stopped=True),
        text=text,
    )


def three(**columns):
    return [trajectory(f"prompt {number}", "word " * number, number=number, **columns) for number in range(3)]


def returning(values, name="fixed"):
    def reward(prompts, completions, **columns):
        return values

    reward.__name__ = name
    return reward


def scores(functions, weights=None, trajectories=None):
    trajectories = three() if trajectories is None else trajectories
    Rewards(functions, weights).score(trajectories)
    return [trajectory.score for trajectory in trajectories]


def test_a_reward_sees_prompts_completions_ids_and_every_other_column():
    seen = {}

    def reward(prompts, completions, **columns):
        seen.update(prompts=prompts, completions=completions, **columns)
        return [0.0] * len(prompts)

    scores([reward], trajectories=three(answer="yes"))
    assert seen == {
        "prompts": ["prompt 0", "prompt 1", "prompt 2"],
        "completions": ["", "word ", "word word "],
        "completion_ids": [[0, 2], [5, 2], [10, 2]],
        "number": [0, 1, 2],
        "answer": ["yes"] * 3,
    }


def test_a_conversations_completion_is_an_assistant_message():
    seen = []
    prompt = [{"role": "user", "content": "hello"}]
    rewards = Rewards([lambda prompts, completions, **_: seen.extend([prompts, completions]) or [1.0]])
    rewards.score([trajectory(prompt, "good")])
    assert seen == [[prompt], [[{"role": "assistant", "content": "good"}]]]


def test_a_column_that_only_some_rows_have_is_none_elsewhere():
    def reward(prompts, completions, extra, **_):
        assert extra == [None, 7]
        return [0.0, 0.0]

    scores([reward], trajectories=[trajectory("a", "b"), trajectory("a", "b", extra=7)])


def test_rewards_are_added_by_weight_and_kept_by_name():
    trajectories = three()
    rewards = Rewards([returning([1, 2, 3], "one"), returning([10.0, 20.0, 30.0], "two")], [2.0, 0.5])
    rewards.score(trajectories)
    assert [trajectory.score for trajectory in trajectories] == [7.0, 14.0, 21.0]
    assert [trajectory.rewards for trajectory in trajectories] == [
        {"one": 1.0, "two": 10.0},
        {"one": 2.0, "two": 20.0},
        {"one": 3.0, "two": 30.0},
    ]


def test_weights_are_one_by_default():
    assert scores([returning([1, 2, 3]), returning([1, 1, 1])]) == [2, 3, 4]


def test_none_is_unscored_and_never_zero():
    trajectories = three()
    Rewards([returning([None, None, 3.0], "a"), returning([None, 5.0, 1.0], "b")], [1.0, 2.0]).score(trajectories)
    assert [trajectory.score for trajectory in trajectories] == [None, 10.0, 5.0]
    assert trajectories[0].rewards == {"a": None, "b": None}


def test_a_score_of_zero_counts():
    assert scores([returning([0.0, None, 0])]) == [0.0, None, 0.0]


def test_names_come_from_the_function_its_name_or_its_class():
    class Judge:
        def __call__(self, prompts, completions, **columns):
            return [0.0] * len(prompts)

    named = Judge()
    named.name = "strict"
    functions = [returning([0] * 3, "length"), returning([0] * 3, "length"), Judge(), named]
    assert Rewards(functions).names == ["length", "length_2", "Judge", "strict"]


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_an_async_reward_is_awaited(weight):
    async def reward(prompts, completions, **columns):
        await asyncio.sleep(0)
        return [1.0, None, 2.0]

    assert scores([reward], [weight]) == [weight, None, 2 * weight]


def test_an_async_reward_is_awaited_inside_a_running_loop():
    """As in a notebook."""

    async def reward(prompts, completions, **columns):
        await asyncio.sleep(0)
        return [1.0, 2.0, 3.0]

    async def notebook():
        return scores([reward])

    assert asyncio.run(notebook()) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "values", [[1, 2, 3], (1.0, 2.0, 3.0), torch.tensor([1.0, 2.0, 3.0]), numpy.array([1, 2, 3])], ids=type
)
def test_any_sequence_of_numbers_is_taken(values):
    result = scores([returning(values)])
    assert result == [1.0, 2.0, 3.0]
    assert all(type(score) is float for score in result)


@pytest.mark.parametrize(
    "bad", [float("nan"), float("inf"), -float("inf"), "high", [1.0], torch.tensor(float("nan"))], ids=repr
)
def test_what_is_no_finite_number_ends_the_run_with_the_episode(bad):
    with pytest.raises(InputError) as caught:
        scores([returning([0.0, bad, 0.0], "broken")])
    message = str(caught.value)
    for part in ("'broken'", "'prompt 1'", "'word '"):
        assert part in message


@pytest.mark.parametrize("values", [None, 1.0, "abc", iter([1.0, 2.0, 3.0])], ids=["None", "float", "str", "iterator"])
def test_what_is_no_list_is_an_error_with_the_rewards_name(values):
    with pytest.raises(InputError, match="'broken' returned"):
        scores([returning(values, "broken")])


@pytest.mark.parametrize("values", [[], [1.0], [1.0] * 4])
def test_a_wrong_number_of_values_is_an_error(values):
    with pytest.raises(InputError, match=f"'broken' returned {len(values)} values for 3 completions"):
        scores([returning(values, "broken")])


def test_a_reward_that_raises_ends_the_run():
    def reward(prompts, completions, **columns):
        raise KeyError("answer")

    with pytest.raises(KeyError, match="answer"):
        scores([reward])


def test_no_reward_and_wrong_weights_are_errors():
    with pytest.raises(InputError, match="no reward"):
        Rewards([])
    with pytest.raises(InputError, match="2 numbers for 1 rewards"):
        Rewards([returning([])], [1.0, 2.0])


def test_no_trajectories_call_nothing():
    def reward(**_):
        raise AssertionError

    Rewards([reward]).score([])
