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


def scores(functions, weights=None, trajectories=None):
    trajectories = three() if trajectories is None else trajectories
    Rewards(functions, weights).score(trajectories)
    return [trajectory.score for trajectory in trajectories]


def test_a_reward_sees_prompts_completions_ids_and_every_other_column():
    seen = {}

    def reward(prompts, completions, trainer_state, log_extra, log_metric, **columns):
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


def test_a_reward_that_changes_what_it_is_given_changes_nothing_else():
    def careless(prompts, completions, completion_ids, number):
        for argument in (prompts, completions, completion_ids[0], number):
            argument.clear()
        return [0.0] * 3

    def careful(prompts, completions, completion_ids, number):
        assert (len(prompts), len(completions), completion_ids[0], number) == (3, 3, [0, 2], [0, 1, 2])
        return [0.0] * 3

    trajectories = three()
    Rewards([careless, careful]).score(trajectories)
    assert trajectories[0].completion.ids == [0, 2]


@pytest.mark.parametrize(
    "name", ["prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"]
)
def test_a_column_with_the_name_of_an_argument_is_an_error(name):
    with pytest.raises(InputError, match=f"{name}.*Rename"):
        scores([returning([0.0] * 3)], trajectories=three(**{name: 1}))


def test_the_trainers_state_is_passed_on():
    def reward(prompts, completions, trainer_state):
        return [trainer_state.global_step] * 3

    trajectories = three()
    Rewards([reward]).score(trajectories, TrainerState(global_step=7))
    assert trajectories[0].score == 7.0


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


@pytest.mark.parametrize(
    "values", [[1, 2, 3], (1.0, 2.0, 3.0), torch.tensor([1.0, 2.0, 3.0]), numpy.array([1, 2, 3])], ids=type
)
def test_any_sequence_of_numbers_is_taken(values):
    result = scores([returning(values)])
    assert result == [1.0, 2.0, 3.0]
    assert all(type(score) is float for score in result)


# By token


def test_a_list_is_a_reward_for_each_token():
    trajectories = three()
    Rewards([returning([[1.0, 0.5], 3.0, None], "steps")], [2.0]).score(trajectories)
    assert [trajectory.rewards["steps"] for trajectory in trajectories] == [1.5, 3.0, None]
    assert [trajectory.reward for trajectory in trajectories] == [3.0, 6.0, None]
    assert [trajectory.score for trajectory in trajectories] == [0.0, 6.0, None]
    assert trajectories[0].token_rewards.tolist() == trajectories[0].token_scores.tolist() == [2.0, 1.0]
    assert trajectories[1].token_rewards is trajectories[1].token_scores is None
    assert trajectories[2].token_rewards is trajectories[2].token_scores is None


def test_rewards_by_token_are_added_to_each_other_and_to_the_rest_by_weight():
    (one,) = trajectories = three()[:1]
    functions = [returning([[1.0, 2.0]], "a"), returning([10.0], "b"), returning([[0.0, 4.0]], "c")]
    Rewards(functions, [1.0, 3.0, -0.5]).score(trajectories)
    assert one.token_rewards.tolist() == [1.0, 0.0]
    assert (one.score, one.reward) == (30.0, 31.0)
    assert one.rewards == {"a": 3.0, "b": 10.0, "c": 4.0}


def test_no_digit_of_a_sum_over_tokens_is_lost():
    one = trajectory("prompt", "text")
    one.completion.ids = [5] * 10
    rewards = Rewards([returning([[0.1] * 10], "tenths"), returning([[1e16, 1.0, -1e16] + [0.0] * 7], "large")], [1, 0])
    rewards.score([one])
    assert one.rewards == {"tenths": 1.0, "large": 1.0}
    assert one.token_rewards.tolist() == [0.1] * 10  # as float32 they would not be
    assert one.reward == 1.0


@pytest.mark.parametrize(
    "value", [(1.0, 2.0), torch.tensor([1, 2]), numpy.array([1.0, 2.0]), [torch.tensor(1.0), numpy.int64(2)]], ids=str
)
def test_any_sequence_of_numbers_is_taken_by_token(value):
    trajectories = three()
    Rewards([returning([value, 0.0, 0.0])]).score(trajectories)
    assert trajectories[0].token_rewards.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("value", [[], [1.0], [1.0] * 3, torch.ones(5)], ids=len)
def test_a_list_of_another_length_than_the_completion_is_an_error_with_the_episode(value):
    with pytest.raises(InputError) as caught:
        scores([returning([None, value, None], "steps")])
    message = str(caught.value)
    for part in ("'steps'", f"list of {len(value)} for a completion of 2 tokens", "'prompt 1'", "'word '"):
        assert part in message


@pytest.mark.parametrize("bad", [float("nan"), -float("inf"), None, "high", [1.0], torch.ones(2)], ids=repr)
def test_a_token_without_a_finite_number_is_an_error_with_its_position(bad):
    with pytest.raises(InputError) as caught:
        scores([returning([None, [0.0, bad], None], "steps")])
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
    trajectories = three()
    Rewards([logging(parsed=["a", None, "c"]), logging(length=torch.tensor([1, 2, 3]))]).score(trajectories)
    assert [trajectory.extra for trajectory in trajectories] == [
        {"parsed": "a", "length": 1},
        {"parsed": None, "length": 2},
        {"parsed": "c", "length": 3},
    ]
    assert type(trajectories[0].extra["length"]) is int  # as JSON can hold it


def test_logged_metrics_of_one_call_come_back_by_name():
    rewards = Rewards([logging(rate=1.0, tries=3), logging(rate=torch.tensor(0.5))])
    for _ in range(2):
        assert rewards.score(three()) == {"rate": [1.0, 0.5], "tries": [3.0]}
    assert Rewards([returning([0.0] * 3)]).score(three()) == {}


def test_logging_for_another_number_of_completions_is_an_error():
    with pytest.raises(InputError, match="'reward' logged 2 values as 'parsed' for 3 completions"):
        scores([logging(parsed=["a", "b"])])


def test_logging_one_column_twice_is_an_error():
    with pytest.raises(InputError, match="'reward_2' logged 'parsed'"):
        scores([logging(parsed=["a"] * 3), logging(parsed=["b"] * 3)])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "high"])
def test_a_metric_that_is_no_finite_number_is_an_error(value):
    with pytest.raises(InputError, match=r"'reward' logged .* as 'rate'"):
        scores([logging(rate=value)])


# What cannot be used


@pytest.mark.parametrize(
    "bad", [float("nan"), float("inf"), -float("inf"), "high", 10**400, torch.tensor(float("nan"))], ids=str
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


def test_no_reward_and_wrong_weights_are_errors():
    with pytest.raises(InputError, match="no reward"):
        Rewards([])
    with pytest.raises(InputError, match="2 numbers for 1 rewards"):
        Rewards([returning([])], [1.0, 2.0])


def test_no_trajectories_call_nothing():
    def reward(**_):
        raise AssertionError

    Rewards([reward]).score([])
