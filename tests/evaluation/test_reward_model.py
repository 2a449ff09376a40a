"""Pairs as a reward function takes them, with what a row says about its rendering."""

from datasets import Dataset

from hf_rlhf.evaluation.reward_model import Pairs, RatedGroups, reward_accuracy


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


def test_each_group_with_two_ratings_gives_one_pair_by_seed():
    groups = Dataset.from_list(
        [
            {"prompt": "a", "completions": ["1", "3", "2"], "ratings": [1.0, 3.0, 2.0], "source": "x", "tools": "[1]"},
            {"prompt": "b", "completions": ["5", "5"], "ratings": [5.0, 5.0], "source": "y", "tools": "[2]"},
            {"prompt": "c", "completions": ["0", "9"], "ratings": [0.0, 9.0], "source": "z", "tools": "[3]"},
        ]
    )
    rated = RatedGroups.from_dataset(groups)
    drawn = [rated.one_pair_each(seed) for seed in range(20)]
    for pairs in drawn:
        assert pairs.prompts == ["a", "c"]
        assert [float(c) - float(r) for c, r in zip(pairs.chosen, pairs.rejected, strict=True)] == pairs.about["margin"]
        assert all(margin > 0 for margin in pairs.about["margin"])
        assert (pairs.about["source"], pairs.options["tools"]) == (["x", "z"], ["[1]", "[3]"])
    assert drawn[0] == rated.one_pair_each(0)
    assert {(*pairs.chosen[:1], *pairs.rejected[:1]) for pairs in drawn} == {("3", "1"), ("3", "2"), ("2", "1")}
    assert RatedGroups.from_dataset(groups.select([1])).one_pair_each() is None
