"""Pairs as a reward function takes them, with what a row says about its rendering."""

from datasets import Dataset

from hf_rlhf.evaluation.reward_model import Pairs, reward_accuracy


def talk(text, role="assistant"):
    return [{"role": role, "content": text}]


def rows(**own):
    return Dataset.from_list([{"prompt": talk("hello", "user"), "chosen": talk("a b"), "rejected": talk("a"), **own}])


def test_accuracy_is_measured_with_the_tools_of_a_row():
    seen = []

    def reward(prompts, completions, tools=None, **columns):
        seen.append((tools, columns))
        return [len(completion[0]["content"]) for completion in completions]

    metrics = reward_accuracy(reward, Pairs.from_dataset(rows(tools="[1]", id=3)))
    assert (metrics["eval_accuracy"], metrics["eval_margin"]) == (1.0, 2.0)
    assert seen == [(["[1]"], {})] * 2


def test_a_function_that_takes_no_tools_gets_none():
    pairs = Pairs.from_dataset(rows(tools="[1]"))
    assert pairs.rewards(lambda prompts, completions: [7.0], pairs.chosen) == [7.0]


def test_whole_texts_have_an_empty_prompt():
    pairs = Pairs.from_dataset(Dataset.from_list([{"chosen": "a", "rejected": "b"}]))
    assert (pairs.prompts, pairs.options) == ([""], {})
