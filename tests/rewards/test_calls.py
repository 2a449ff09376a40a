import asyncio
import functools
import threading
import time
from functools import partial

import pytest
from trl.rewards import get_soft_overlong_punishment, think_format_reward

from hf_rlhf.rewards.calls import accepted, call_all
from hf_rlhf.rewards.contract import Rewards
from hf_rlhf.types import Completion, Trajectory

ARGUMENTS = {"prompts": ["p", "q"], "completions": ["c", "d"], "completion_ids": [[1], [2]], "answer": ["x", "y"]}


def call(*functions):
    results = [None] * len(functions)
    receivers = [partial(results.__setitem__, i) for i in range(len(functions))]
    call_all(functions, [f"reward {i}" for i in range(len(functions))], [ARGUMENTS] * len(functions), receivers)
    return results


def sleeping(seconds, result=None):
    async def reward(prompts, completions):
        await asyncio.sleep(seconds)
        return result

    return reward


# Which arguments


def taken(function):
    return sorted(accepted(function, ARGUMENTS))


def test_a_function_gets_the_arguments_that_it_names():
    class Judge:
        def __call__(self, prompts, completions, answer):
            raise AssertionError

    assert taken(lambda prompts, completions: None) == ["completions", "prompts"]
    assert taken(lambda prompts, completions, answer: None) == ["answer", "completions", "prompts"]
    assert taken(lambda prompts, completions, *, answer=None: None) == ["answer", "completions", "prompts"]
    assert taken(Judge()) == ["answer", "completions", "prompts"]
    assert taken(functools.partial(lambda scale, prompts, completions: None, 2)) == ["completions", "prompts"]


def test_a_function_of_any_keyword_or_of_no_known_signature_gets_all_arguments():
    class Opaque:
        __signature__ = "none"

        def __call__(self, **_):
            raise AssertionError

    assert taken(lambda prompts, completions, **columns: None) == sorted(ARGUMENTS)
    assert taken(Opaque()) == sorted(ARGUMENTS)
    assert taken(dict.update) == sorted(ARGUMENTS)


def test_prompts_and_completions_are_passed_to_every_function():
    with pytest.raises(TypeError, match="completions"):
        call(lambda prompts, texts=None: [0.0, 0.0])


def test_a_column_that_is_not_there_is_an_error_of_its_function():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'label'"):
        call(lambda prompts, completions, label: [0.0, 0.0])


def test_the_rewards_of_trl_work():
    def trajectory(text, tokens):
        prompt = [{"role": "user", "content": "hello"}]
        return Trajectory({"prompt": prompt}, [1], Completion([5] * tokens, [0.0] * tokens, True), text)

    trajectories = [trajectory("<think> a </think> b", 10), trajectory("a", 15), trajectory("b", 30)]
    rewards = Rewards([think_format_reward, get_soft_overlong_punishment(20, 10)])
    computed = rewards.compute(trajectories).rewards
    assert rewards.names == ["think_format_reward", "soft_overlong_punishment_reward"]
    assert [list(reward.parts.values()) for reward in computed] == [[1.0, 0.0], [0.0, -0.5], [0.0, -1.0]]


# Together


def test_results_come_in_the_order_of_the_functions():
    async def at_once(prompts, completions, answer):
        return answer

    late = sleeping(0.05, "late")
    functions = [late, lambda prompts, completions: "sync", at_once, lambda **_: late([], [])]
    assert call(*functions) == ["late", "sync", ["x", "y"], "late"]


def test_async_rewards_wait_at_the_same_time():
    start = time.perf_counter()
    assert call(sleeping(0.3, "a"), sleeping(0.3, "b")) == ["a", "b"]
    assert 0.3 <= time.perf_counter() - start < 0.5


@pytest.mark.parametrize("as_object", [False, True])
def test_other_rewards_run_in_the_calling_thread_while_the_async_ones_wait(as_object):
    begun, done = threading.Event(), threading.Event()
    threads = {}

    def here(prompts, completions):
        threads["sync"] = threading.current_thread()
        assert begun.wait(10)
        done.set()

    async def elsewhere(prompts, completions):
        threads["async"] = threading.current_thread()
        begun.set()
        while not done.is_set():
            await asyncio.sleep(0.001)

    class Elsewhere:
        async def __call__(self, prompts, completions):
            await elsewhere(prompts, completions)

    call(here, Elsewhere() if as_object else elsewhere)
    assert threads["sync"] is threading.current_thread() is not threads["async"]


def test_async_rewards_work_inside_a_running_loop():
    """Call from a running loop, as a notebook does."""

    async def notebook():
        return call(sleeping(0.0, "awaited"))

    assert asyncio.run(notebook()) == ["awaited"]


def test_without_an_async_reward_no_thread_is_started():
    assert call(lambda **_: threading.active_count()) == [threading.active_count()]


# What raises


def raising(prompts, completions):
    raise KeyError("answer")


async def raising_later(prompts, completions):
    await asyncio.sleep(0.01)
    raise KeyError("answer")


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("broken", [raising, raising_later])
def test_an_exception_is_raised_as_it_is_and_ends_the_other_rewards(broken, position):
    ended = []

    async def waiting(prompts, completions):
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    functions = [waiting]
    functions.insert(position, broken)
    threads = threading.active_count()
    start = time.perf_counter()
    with pytest.raises(KeyError, match="answer"):
        call(*functions)
    assert time.perf_counter() - start < 10
    assert ended == [True]
    assert threading.active_count() == threads


@pytest.mark.parametrize("broken", [raising, raising_later])
def test_an_exception_tells_whose_it_is(broken):
    with pytest.raises(KeyError) as caught:
        call(lambda prompts, completions: None, broken)
    assert caught.value.__notes__ == ["raised by the reward 'reward 1'"]


def takes_text(prompts, completions):
    return [len(text.split()) for text in completions]


async def takes_text_later(prompts, completions):
    return takes_text(prompts, completions)


@pytest.mark.parametrize("reward", [takes_text, takes_text_later])
def test_a_reward_that_takes_messages_for_text_is_told_where_the_text_is(reward):
    messages = [[{"role": "assistant", "content": "four words are here"}]]
    with pytest.raises(AttributeError) as caught:
        call_all([reward], ["words"], [{"prompts": [[]], "completions": messages}], [print])
    name, advice = caught.value.__notes__
    assert name == "raised by the reward 'words'"
    assert "completion[0]['content']" in advice
