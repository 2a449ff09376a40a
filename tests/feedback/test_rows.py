"""Rows of every layout become tasks that do not tell which completion was chosen."""

import datetime

import pytest
from feedback_stores import FIXED, PAIR, RANKED, RATED, reply, user

from hf_rlhf.errors import InputError
from hf_rlhf.feedback.rows import tasks_from_rows


def test_completions_become_one_task_with_their_sources_and_columns():
    row = {"prompt": user("hello"), "completions": ["yes", "no"], "sources": ["a", "b"], "gold": {"preferred": 1}, "priority": 2, "topic": "cats", "day": datetime.date(2026, 1, 2), "none": None}  # fmt: skip
    (task,) = tasks_from_rows([row], PAIR)
    assert (task.completions, task.sources, task.priority) == (("yes", "no"), ("a", "b"), 2.0)
    assert task.gold == {"preferred": 1}
    assert task.columns == {"topic": "cats", "day": "2026-01-02"}


def test_a_preference_does_not_tell_which_was_chosen():
    rows = [{"prompt": f"question {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(400)]
    tasks = tasks_from_rows(rows, PAIR)
    first = sum(task.completions[0].startswith("good") for task in tasks)
    assert 160 < first < 240
    turned = tasks_from_rows([{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows], PAIR)
    assert [task.id for task in turned] == [task.id for task in tasks]
    assert all(task.gold is None for task in tasks)


def test_a_preference_is_gold_only_when_asked():
    (task,) = tasks_from_rows([{"prompt": "q", "chosen": "good", "rejected": "bad"}], PAIR, preferences_are_gold=True)
    assert task.completions[task.gold["preferred"]] == "good"


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "\n\nHuman: hello\n\nAssistant: yes", "rejected": "\n\nHuman: hello\n\nAssistant: no"},
        {"chosen": user("hello") + reply("yes"), "rejected": user("hello") + reply("no")},
        {"prompt": user("hello"), "chosen": reply("yes"), "rejected": reply("no")},
    ],
)
def test_every_layout_of_preferences_is_split_as_the_reward_stage_does(row):
    (task,) = tasks_from_rows([row], RANKED)
    assert task.prompt == user("hello")
    assert sorted(text[0]["content"] for text in task.completions) == ["no", "yes"]


def test_more_completions_than_a_form_asks_about_become_several_tasks():
    row = {"prompt": "q", "completions": ["a", "b", "c"], "sources": ["x", "y", "z"]}
    assert [task.sources for task in tasks_from_rows([row], PAIR)] == [("x", "y"), ("x", "z"), ("y", "z")]
    assert [task.completions for task in tasks_from_rows([row], FIXED)] == [("a",), ("b",), ("c",)]
    assert len(tasks_from_rows([row], RANKED)) == 1
    assert tasks_from_rows([{"prompt": "q", "completion": "a"}], RATED)[0].completions == ("a",)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q"}, "it has prompt"),
        ({"prompt": "q", "completion": "a"}, "2 completions, not 1"),
        ({"completions": ["a", "b"]}, "its prompt is None"),
        ({"prompt": "q", "completions": ["a", 2]}, "a completion is int"),
        ({"prompt": "q", "completions": ["a", "b"], "sources": ["x"]}, "1 sources for 2"),
        ({"prompt": "q", "completions": ["a", "b"], "gold": {"preferred": 5}}, "preferred is"),
        ({"prompt": "q", "completions": ["a", "b", "c"], "gold": {"preferred": 0}}, "its gold is about 3"),
        ({"prompt": user("q") + reply("a"), "completions": ["a", "b"]}, "last message from the assistant"),
        ({"chosen": "a text", "rejected": "another"}, "the prompt cannot be told"),
        ({"prompt": "q", "completions": ["a", "b"], "priority": "high"}, "could not convert"),
    ],
)
def test_a_row_that_is_no_task_is_named_with_the_reason(row, reason):
    with pytest.raises(InputError, match=rf"row 1 \(from 0\) is no task of the form pairwise: .*{reason}"):
        tasks_from_rows([{"prompt": "q", "completions": ["a", "b"]}, row], PAIR)
