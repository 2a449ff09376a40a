import numpy
import pytest
import torch
from transformers import TrainerState

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


def totals(functions, weights=None, trajectories=None):
    return [reward.total for reward in computed(functions, weights, trajectories)]


def computed(functions, weights=None, trajectories=None):
    return Rewards(functions, weights).compute(three() if trajectories is None else trajectories).rewards


def test_a_reward_sees_prompts_completions_ids_and_every_other_column():
    seen = {}

    def reward(prompts, completions, trainer_state, log_extra, log_metric, **columns):
        seen.update(prompts=prompts, completions=completions, **columns)
        return [0.0] * len(prompts)

    totals([reward], trajectories=three(answer="yes"))
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
    rewards.compute([trajectory(prompt, "good")])
    assert seen == [[prompt], [[{"role": "assistant", "content": "good"}]]]


def test_a_column_that_only_some_rows_have_is_none_elsewhere():
    def reward(prompts, completions, extra, **_):
        assert extra == [None, 7]
        return [0.0, 0.0]

    totals([reward], trajectories=[trajectory("a", "b"), trajectory("a", "b", extra=7)])


def test_a_reward_that_changes_what_it_is_given_changes_nothing_else():
    def careless(prompts, completions, completion_ids, number):
        for argument in (prompts, completions, completion_ids[0], number):
            argument.clear()
        return [0.0] * 3

    def careful(prompts, completions, completion_ids, number):
        assert (len(prompts), len(completions), completion_ids[0], number) == (3, 3, [0, 2], [0, 1, 2])
        return [0.0] * 3

    trajectories = three()
    Rewards([careless, careful]).compute(trajectories)
    assert trajectories[0].completion.ids == [0, 2]


@pytest.mark.parametrize(
    "name", ["prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"]
)
def test_a_column_with_the_name_of_an_argument_is_an_error(name):
    with pytest.raises(InputError, match=f"{name}.*Rename"):
        totals([returning([0.0] * 3)], trajectories=three(**{name: 1}))


def test_the_trainers_state_is_passed_on():
    def reward(prompts, completions, trainer_state):
        return [trainer_state.global_step] * 3

    assert Rewards([reward]).compute(three(), TrainerState(global_step=7)).rewards[0].total == 7.0


def test_rewards_are_added_by_weight_and_kept_by_name():
    rewards = computed([returning([1, 2, 3], "one"), returning([10.0, 20.0, 30.0], "two")], [2.0, 0.5])
    assert [reward.total for reward in rewards] == [7.0, 14.0, 21.0]
    assert [reward.parts for reward in rewards] == [
        {"one": 1.0, "two": 10.0},
        {"one": 2.0, "two": 20.0},
        {"one": 3.0, "two": 30.0},
    ]


def test_weights_are_one_by_default():
    assert totals([returning([1, 2, 3]), returning([1, 1, 1])]) == [2, 3, 4]


def test_none_is_unscored_and_never_zero():
    rewards = computed([returning([None, None, 3.0], "a"), returning([None, 5.0, 1.0], "b")], [1.0, 2.0])
    assert [reward.total for reward in rewards] == [None, 10.0, 5.0]
    assert rewards[0].parts == {"a": None, "b": None}


def test_a_reward_of_zero_counts():
    assert totals([returning([0.0, None, 0])]) == [0.0, None, 0.0]


def test_names_come_from_the_function_its_name_or_its_class():
    class Judge:
        def __call__(self, prompts, completions, **columns):
            return [0.0] * len(prompts)

    named = Judge()
    named.name = "strict"
    functions = [returning([0] * 3, "length"), returning([0] * 3, "length"), Judge(), named]
    assert Rewards(functions).names == ["length", "length_2", "Judge", "strict"]


@pytest.mark.parametrize(
    "values", [[1, 2, 3], (1.0, 2.0, 3.0), torch.tensor([1.0, 2.0, 3.0]), numpy.array([1, 2, 3])], ids=type
)
def test_any_sequence_of_numbers_is_taken(values):
    result = totals([returning(values)])
    assert result == [1.0, 2.0, 3.0]
    assert all(type(score) is float for score in result)


# By token


def test_a_list_is_a_reward_for_each_token():
    rewards = computed([returning([[1.0, 0.5], 3.0, None], "steps")], [2.0])
    assert [reward.parts["steps"] for reward in rewards] == [1.5, 3.0, None]
    assert [reward.total for reward in rewards] == [3.0, 6.0, None]
    assert rewards[0].per_token.tolist() == [2.0, 1.0]
    assert rewards[1].per_token is rewards[2].per_token is None


def test_rewards_by_token_are_added_to_each_other_and_to_the_rest_by_weight():
    functions = [returning([[1.0, 2.0]], "a"), returning([10.0], "b"), returning([[0.0, 4.0]], "c")]
    (reward,) = computed(functions, [1.0, 3.0, -0.5], three()[:1])
    assert reward.per_token.tolist() == [1.0, 0.0]
    assert reward.total == 31.0
    assert reward.parts == {"a": 3.0, "b": 10.0, "c": 4.0}


def test_no_digit_of_a_sum_over_tokens_is_lost():
    one = trajectory("prompt", "text")
    one.completion.ids = [5] * 10
    functions = [returning([[0.1] * 10], "tenths"), returning([[1e16, 1.0, -1e16] + [0.0] * 7], "large")]
    (reward,) = computed(functions, [1, 0], [one])
    assert reward.parts == {"tenths": 1.0, "large": 1.0}
    assert reward.per_token.tolist() == [0.1] * 10  # as float32 they would not be
    assert reward.total == 1.0


@pytest.mark.parametrize(
    "value", [(1.0, 2.0), torch.tensor([1, 2]), numpy.array([1.0, 2.0]), [torch.tensor(1.0), numpy.int64(2)]], ids=str
)
def test_any_sequence_of_numbers_is_taken_by_token(value):
    assert computed([returning([value, 0.0, 0.0])])[0].per_token.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("value", [[], [1.0], [1.0] * 3, torch.ones(5)], ids=len)
def test_a_list_of_another_length_than_the_completion_is_an_error_with_the_episode(value):
    with pytest.raises(InputError) as caught:
        totals([returning([None, value, None], "steps")])
    message = str(caught.value)
    for part in ("'steps'", f"list of {len(value)} for a completion of 2 tokens", "'prompt 1'", "'word '"):
        assert part in message


@pytest.mark.parametrize("bad", [float("nan"), -float("inf"), None, "high", [1.0], torch.ones(2)], ids=repr)
def test_a_token_without_a_finite_number_is_an_error_with_its_position(bad):
    with pytest.raises(InputError) as caught:
        totals([returning([None, [0.0, bad], None], "steps")])
    message = str(caught.value)
    for part in ("'steps'", repr(bad), "position 1 of 2", "'prompt 1'", "'word '"):
        assert part in message


# What rewards log


def logging(**logged):
    def reward(prompts, completions, log_extra, log_metric):
        for name, value in logged.items():
            (log_extra if isinstance(value, list) or getattr(value, "ndim", 0) else log_metric)(name, value)
        return [0.0] * 3

    return reward


def test_what_a_reward_logs_about_a_completion_stays_with_it():
    rewards = computed([logging(parsed=["a", None, "c"]), logging(length=torch.tensor([1, 2, 3]))])
    assert [reward.extra for reward in rewards] == [
        {"parsed": "a", "length": 1},
        {"parsed": None, "length": 2},
        {"parsed": "c", "length": 3},
    ]
    assert type(rewards[0].extra["length"]) is int  # as JSON can hold it


def test_logged_metrics_of_one_call_come_back_by_name():
    rewards = Rewards([logging(rate=1.0, tries=3), logging(rate=torch.tensor(0.5))])
    for _ in range(2):
        assert rewards.compute(three()).metrics == {"rate": [1.0, 0.5], "tries": [3.0]}
    assert Rewards([returning([0.0] * 3)]).compute(three()).metrics == {}


def test_logging_for_another_number_of_completions_is_an_error():
    with pytest.raises(InputError, match="'reward' logged 2 values as 'parsed' for 3 completions"):
        totals([logging(parsed=["a", "b"])])


def test_logging_one_column_twice_is_an_error():
    with pytest.raises(InputError, match="'reward_2' logged 'parsed'"):
        totals([logging(parsed=["a"] * 3), logging(parsed=["b"] * 3)])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "high"])
def test_a_metric_that_is_no_finite_number_is_an_error(value):
    with pytest.raises(InputError, match=r"'reward' logged .* as 'rate'"):
        totals([logging(rate=value)])


# What cannot be used


@pytest.mark.parametrize(
    "bad", [float("nan"), float("inf"), -float("inf"), "high", 10**400, torch.tensor(float("nan"))], ids=str
)
def test_what_is_no_finite_number_ends_the_run_with_the_episode(bad):
    with pytest.raises(InputError) as caught:
        totals([returning([0.0, bad, 0.0], "broken")])
    message = str(caught.value)
    for part in ("'broken'", "'prompt 1'", "'word '"):
        assert part in message


@pytest.mark.parametrize("values", [None, 1.0, "abc", iter([1.0, 2.0, 3.0])], ids=["None", "float", "str", "iterator"])
def test_what_is_no_list_is_an_error_with_the_rewards_name(values):
    with pytest.raises(InputError, match="'broken' returned"):
        totals([returning(values, "broken")])


@pytest.mark.parametrize("values", [[], [1.0], [1.0] * 4])
def test_a_wrong_number_of_values_is_an_error(values):
    with pytest.raises(InputError, match=f"'broken' returned {len(values)} values for 3 completions"):
        totals([returning(values, "broken")])


def test_no_reward_and_wrong_weights_are_errors():
    with pytest.raises(InputError, match="no reward"):
        Rewards([])
    with pytest.raises(InputError, match="2 numbers for 1 rewards"):
        Rewards([returning([])], [1.0, 2.0])


def test_no_trajectories_call_nothing():
    def reward(**_):
        raise AssertionError

    Rewards([reward]).compute([])
