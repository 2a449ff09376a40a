"""The report on annotators: agreement by form, position, gold questions and pace."""

import json
import random

import pytest
from feedback_stores import PAIR, RANKED, RATED, say

from hf_rlhf.feedback import FeedbackStore, Form, Task
from hf_rlhf.feedback.agreement import report_of
from hf_rlhf.feedback.bias import is_right
from hf_rlhf.feedback.forms import form_from_json
from hf_rlhf.feedback.store import SKIP
from hf_rlhf.feedback.tasks import shown_order


@pytest.fixture
def store(tmp_path):
    with FeedbackStore(tmp_path / "feedback.db") as opened:
        yield opened


def pair(number: int, **changed) -> Task:
    return Task(PAIR, f"question {number}", ("GOOD", "poor"), **changed)


def of(report, form, what):
    return next(each for each in report["agreement"] if (each["form"], each["what"]) == (form, what))


def test_two_who_agree_on_three_of_four_pairs(store):
    for number, (ann, bob) in enumerate([(0, 0), (1, 1), (0, 0), (0, 1)]):
        say(store, pair(number), {"preferred": ann, "strength": 2}, "ann")
        say(store, pair(number), {"preferred": bob, "strength": 2}, "bob")
    report = report_of(store)
    side = of(report, "pairwise", "side")
    assert (side["units"], side["annotations"], side["annotators"]) == (4, 8, 2)
    assert side["percent"]["value"] == 0.75
    assert side["alpha"]["nominal"]["value"] == pytest.approx(1 - 7 * 2 / 30, abs=1e-6)  # o = 2, n_c n_k = 2 * 5 * 3
    (both,) = side["pairs"]
    assert (both["annotators"], both["n"], both["kappa"]["value"]) == (["ann", "bob"], 4, 0.5)
    assert of(report, "pairwise", "strength")["alpha"]["interval"]["value"] == side["alpha"]["nominal"]["value"]


def test_a_task_of_one_annotator_and_gold_are_no_units(store):
    say(store, pair(1), {"preferred": 0}, "ann")
    gold = pair(2, gold={"preferred": 0})
    for name in ("ann", "bob"):
        say(store, gold, {"preferred": 0}, name)
    report = report_of(store)
    assert of(report, "pairwise", "side")["units"] == 0
    assert of(report, "pairwise", "side")["percent"] == {"value": None, "low": None, "high": None}


def test_fields_of_one_name_and_different_types_are_not_mixed(store):
    for type, values in ({"type": "scale"}, [1, 2]), ({"type": "choice", "options": ["x", "y"]}, ["x", "y"]):
        form = form_from_json({"kind": "custom", "fields": [{"name": "tone", **type}]})
        for name, value in zip(("ann", "bob"), values, strict=True):
            say(store, Task(form, "q", ("a",)), {"fields": {"tone": value}}, name)
    found = [each for each in report_of(store)["agreement"] if each["what"] == "tone"]
    assert [each["units"] for each in found] == [1, 1]


def test_rankings_have_kendalls_w_and_ratings_a_line_for_each_criterion(store):
    for number in range(3):
        task = Task(RANKED, f"q {number}", ("a", "b", "c"))
        for name, ranks in (("ann", [1, 2, 3]), ("bob", [1, 2, 3]), ("cat", [1, 3, 2])):
            say(store, task, {"ranks": ranks}, name)
    form = Form("rating", criteria=("true", "kind"))
    for number in range(6):
        task = Task(form, f"q {number}", ("a",))
        say(store, task, {"ratings": {"true": [number % 5 + 1], "kind": [3]}}, "ann")
        say(store, task, {"ratings": {"true": [number % 5 + 1], "kind": [4]}}, "bob")
    report = report_of(store)
    assert of(report, "ranking", "rank")["kendalls_w"]["value"] == pytest.approx(7 / 9, abs=1e-6)
    assert of(report, "rating", "true")["alpha"]["ordinal"]["value"] == 1
    assert of(report, "rating", "kind")["percent"]["value"] == 0
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_spans_agree_word_by_word_and_fields_by_their_kind(store):
    span = Task(Form("span", labels=("false",)), "q", ("one two three four",))
    say(store, span, {"spans": [{"start": 0, "end": 7, "label": "false"}]}, "ann")
    say(store, span, {"spans": [{"start": 4, "end": 7, "label": "false"}]}, "bob")
    assert of(report_of(store), "span", "label of a word")["percent"]["value"] == 0.75
    form = form_from_json({"kind": "custom", "fields": [{"name": "tone", "type": "choice", "options": ["a", "b"]}, {"name": "n", "type": "scale"}, {"name": "t", "type": "text"}]})  # fmt: skip
    for name in ("ann", "bob"):
        say(store, Task(form, "q", ("x",)), {"fields": {"tone": "a", "n": 2, "t": name}}, name)
    found = {each["what"]: set(each["alpha"]) for each in report_of(store)["agreement"] if each["form"] == "custom"}
    assert found == {"tone": {"nominal"}, "n": {"nominal", "ordinal", "interval"}}


def test_who_always_takes_the_first_is_flagged_and_a_fair_one_is_not(store):
    store.set("salt", "the same orders in every run")
    rng = random.Random(0)
    for number in range(60):
        for name in ("left", "fair", "taste"):
            order = shown_order(pair(number).id, name, store.salt, 2)
            preferred = {"left": order[0], "fair": rng.randrange(2), "taste": 0}[name]
            say(store, pair(number), {"preferred": preferred}, name, shown_order=order)
    found = {each["name"]: each["position"] for each in report_of(store)["annotators"]}
    assert (found["left"]["share"], found["left"]["flagged"]) == (1, True)
    assert not found["fair"]["flagged"]
    assert not found["taste"]["flagged"]  # always the better text, wherever it stands
    assert found["taste"]["low"] < 0.5 < found["taste"]["high"]


def test_gold_accuracy_and_pace_of_each_annotator(store):
    for number in range(10):
        gold = pair(number, gold={"preferred": 0, "strength": 1})
        say(store, gold, {"preferred": 0, "strength": 3}, "careful", seconds=20.0)
        say(store, gold, {"preferred": number % 2}, "hasty", seconds=1.0)
    say(store, pair(11), None, "hasty", kind=SKIP)
    careful, hasty = report_of(store)["annotators"]
    assert (careful["gold"]["accuracy"], hasty["gold"]["accuracy"]) == (1, 0.5)
    assert hasty["gold"]["low"] < 0.5 < hasty["gold"]["high"]
    assert (careful["pace"]["hurried"], hasty["pace"]["hurried"]) == (0, 10)
    assert (hasty["pace"]["median_seconds"], hasty["skips"]) == (1.0, 1)


@pytest.mark.parametrize(
    ("form", "completions", "gold", "right", "wrong"),
    [
        (RANKED, 3, {"ranks": [1, 2, 2]}, {"ranks": [1, 3, 2]}, {"ranks": [2, 1, 3]}),
        (RATED, 1, {"ratings": {"quality": [4]}}, {"ratings": {"quality": [5]}}, {"ratings": {"quality": [2]}}),
        (Form("correction"), 1, {"text": "a b"}, {"text": "a  b"}, {"text": "ab"}),
    ],
)
def test_an_answer_is_right_where_it_says_what_the_gold_one_says(form, completions, gold, right, wrong):
    task = Task(form, "q", tuple("abc"[:completions]), gold=gold)
    assert is_right(task, task.check(right))
    assert not is_right(task, task.check(wrong))


def test_an_empty_store_has_an_empty_report(store):
    assert report_of(store) == {
        "tasks": 0,
        "answers": 0,
        "annotators": [],
        "position": {"n": 0, "first": 0, "share": None, "low": None, "high": None, "flagged": False},
        "agreement": [],
    }
