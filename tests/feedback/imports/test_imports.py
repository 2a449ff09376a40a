"""Feedback of Argilla and Label Studio becomes the same rows, and a store goes to their files and back."""

import json

import pytest
from feedback_stores import FIXED, PAIR, RANKED, prefer, say, user

from hf_rlhf.data.json_files import read_records
from hf_rlhf.data.rows import BadRows
from hf_rlhf.errors import InputError
from hf_rlhf.feedback import FeedbackStore, Form, Task
from hf_rlhf.feedback.conversion import convert
from hf_rlhf.feedback.imports import FieldNames, from_argilla, from_label_studio, to_argilla, to_label_studio
from hf_rlhf.feedback.imports.imported import side_of

# As `dataset.records.to_json(path)` of argilla 2.8 writes them.
ARGILLA = [
    {
        "id": "r-1",
        "fields": {"prompt": "Is the sky blue?", "response_1": "Yes.", "response_2": "Ask someone else."},
        "metadata": {"topic": "sky"},
        "suggestions": {"preference": {"value": "response_2", "score": None, "agent": "judge-7b"}},
        "responses": {
            "preference": [{"value": "response_1", "user_id": "ann"}, {"value": "response_1", "user_id": "bob"}],
            "strength": [{"value": 3, "user_id": "ann"}, {"value": 1, "user_id": "bob"}],
        },
        "vectors": {},
        "_server_id": "0f4b5a8e-0000-4000-8000-000000000001",
    },
    {
        "id": "r-2",
        "fields": {"prompt": "Name a sea.", "response_1": "Idaho", "response_2": "The Baltic"},
        "metadata": {},
        "suggestions": {},
        "responses": {
            "preference": [{"value": "response_2", "user_id": "ann"}, {"value": "response_1", "user_id": "cat", "status": "draft"}],
            "strength": [{"value": 2, "user_id": "ann"}],
        },
        "vectors": {},
        "_server_id": None,
    },
]  # fmt: skip


def pairwise(selected: str) -> dict:
    return {"from_name": "pw", "to_name": "txt-1,txt-2", "type": "pairwise", "value": {"selected": selected}}


def rated(name: str, rating: int) -> dict:
    return {"id": "x", "from_name": name, "to_name": "txt", "type": "rating", "value": {"rating": rating}}


# As `Export > JSON` of Label Studio 1.x writes them.
LABEL_STUDIO = [
    {
        "id": 1,
        "data": {"prompt": "Is the sky blue?", "text1": "Yes.", "text2": "Ask someone else.", "topic": "sky"},
        "annotations": [
            {"id": 11, "completed_by": 1, "result": [pairwise("left"), rated("strength", 3)], "was_cancelled": False, "lead_time": 4.2, "created_at": "2026-01-05T10:00:00Z"},
            {"id": 12, "completed_by": {"id": 2, "email": "bob@example.org"}, "result": [pairwise("left"), rated("strength", 1)], "was_cancelled": False},
        ],
        "predictions": [],
    },
    {
        "id": 2,
        "data": {"prompt": "Name a sea.", "text1": "Idaho", "text2": "The Baltic"},
        "annotations": [{"id": 13, "completed_by": 1, "result": [pairwise("right"), rated("strength", 2)], "was_cancelled": False}],
        "predictions": [{"model_version": "judge-7b", "result": [pairwise("left"), rated("strength", 1)]}],
    },
]  # fmt: skip


def placed(records):
    return [(f"record {number}", record) for number, record in enumerate(records)]


@pytest.fixture
def stores(tmp_path):
    with FeedbackStore(tmp_path / "one.db") as one, FeedbackStore(tmp_path / "two.db") as two:
        yield one, two


def pairs(store):
    return [{name: row[name] for name in ("prompt", "chosen", "rejected", "margin", "n", "agreement")} for row in convert(store).preferences]  # fmt: skip


def test_argilla_and_label_studio_give_the_same_preference_rows(stores, tmp_path):
    for store, name, records, read in zip(stores, ("a", "l"), (ARGILLA, LABEL_STUDIO), (from_argilla, from_label_studio), strict=True):  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps(records), encoding="utf-8")
        assert read(read_records(tmp_path / f"{name}.json", BadRows())).add_to(store) == (2, 3)
    assert pairs(stores[0]) == pairs(stores[1])
    first, second = convert(stores[0]).preferences
    assert (first["chosen"], first["rejected"], first["margin"]) == (" Yes.", " Ask someone else.", 0.666667)
    assert (second["chosen"], second["n"], first["topic"]) == (" The Baltic", 1, "sky")
    assert [event.annotator for event in stores[1].events()] == ["1", "bob@example.org", "1"]
    assert stores[1].events()[0].seconds == 4.2


def test_the_same_file_twice_adds_nothing(stores):
    for read, records in ((from_argilla, ARGILLA), (from_label_studio, LABEL_STUDIO)):
        read(placed(records)).add_to(stores[0])
        before = stores[0].events()
        assert read(placed(records)).add_to(stores[0]) == (0, 0)
        assert stores[0].events() == before


def test_answers_of_models_are_taken_when_asked(stores):
    from_argilla(placed(ARGILLA), suggestions=True).add_to(stores[0])
    from_label_studio(placed(LABEL_STUDIO), predictions=True).add_to(stores[1])
    for store in stores:
        assert [event.annotator for event in store.events() if event.annotator_kind == "model"] == ["judge-7b"]


def test_every_kind_of_argilla_question_has_a_form(stores):
    fields = {"prompt": user("hello"), "response": "the 🙂 cat"}
    record = {"fields": fields, "responses": {
        "helpful": [{"value": 4, "user_id": "ann"}], "true": [{"value": 2, "user_id": "ann"}],
        "fixed": [{"value": "the cat", "user_id": "ann"}],
        "wrong": [{"value": [{"start": 4, "end": 5, "label": "emoji"}], "user_id": "ann"}],
    }}  # fmt: skip
    three = {"fields": {"prompt": "q", "response_1": "a", "response_2": "b", "response_3": "c"}, "responses": {
        "ranking": [{"value": ["response_2", "response_3", "response_1"], "user_id": "ann"}, {"value": [{"value": "response_1", "rank": 1}, {"value": "response_2", "rank": 1}, {"value": "response_3", "rank": 2}], "user_id": "bob"}],
        "comment": [{"value": "nice", "user_id": "ann"}],
    }}  # fmt: skip
    made = from_argilla(placed([record, three]))
    made.add_to(stores[0])
    found = {(event.annotator, stores[0].task(event.task).form.kind): event.value for event in stores[0].events()}
    assert found == {
        ("ann", "rating"): {"ratings": {"helpful": [4], "true": [2]}},
        ("ann", "correction"): {"text": "the cat"},
        ("ann", "span"): {"spans": [{"start": 4, "end": 5, "label": "emoji"}]},
        ("ann", "ranking"): {"ranks": [3, 1, 2]},
        ("bob", "ranking"): {"ranks": [1, 1, 2]},
    }
    assert made.omitted == {"answers to the question comment": 1}


def test_every_kind_of_label_studio_result_has_a_form(stores):
    one = {"prompt": "hello", "answer": "the 🙂 cat sat"}
    results = [
        rated("helpful", 4),
        {"from_name": "fix", "to_name": "txt", "type": "textarea", "value": {"text": ["the cat"]}},
        {"from_name": "l", "to_name": "txt", "type": "labels", "value": {"start": 7, "end": 10, "text": "cat", "labels": ["noun"]}},
        {"from_name": "b", "to_name": "img", "type": "rectanglelabels", "value": {}},
    ]  # fmt: skip
    items = [{"id": "x", "title": "t", "body": "first"}, {"id": "y", "title": "t", "body": "second"}]
    ranked = {"from_name": "r", "to_name": "i", "type": "ranker", "value": {"ranker": ["y", "x"]}}
    made = from_label_studio(placed([
        {"data": one, "annotations": [{"completed_by": 1, "result": results}]},
        {"data": {"prompt": "q", "items": items}, "annotations": [{"completed_by": 2, "result": [ranked]}, {"completed_by": 3, "result": [], "was_cancelled": True}]},
        {"data": {"prompt": "q", "text1": "a", "text2": "b"}, "annotations": [{"completed_by": 2, "was_cancelled": True, "result": [pairwise("left")]}]},
    ]))  # fmt: skip
    made.add_to(stores[0])
    found = {(event.kind, stores[0].task(event.task).form.kind): event.value for event in stores[0].events()}
    assert found == {
        ("answer", "rating"): {"ratings": {"helpful": [4]}},
        ("answer", "correction"): {"text": "the cat"},
        ("answer", "span"): {"spans": [{"start": 6, "end": 9, "label": "noun"}]},  # JavaScript's 7, in code points
        ("answer", "ranking"): {"ranks": [2, 1]},
        ("skip", "pairwise"): None,
    }
    assert made.omitted == {"results of the type rectanglelabels": 1, "annotations without a result": 1}


@pytest.mark.parametrize(("write", "read"), [(to_argilla, from_argilla), (to_label_studio, from_label_studio)])
def test_a_store_goes_out_and_comes_back(stores, write, read):
    one, two = stores
    prefer(one, Task(PAIR, user("q"), ("a 🙂", "b"), columns={"topic": "cats"}), 1, strength=2)
    prefer(one, Task(PAIR, "q2", ("a", "b")), "tie")
    prefer(one, Task(PAIR, "q3", ("a", "b")), "both_bad", "bob")
    say(one, Task(RANKED, "q", ("a", "b", "c")), {"ranks": [2, 3, 1]})
    say(one, Task(Form("rating", criteria=("kind", "true")), "q", ("a",)), {"ratings": {"kind": [4], "true": [1]}})
    say(one, Task(FIXED, "q", ("a",)), {"text": "A"})
    say(one, Task(Form("span", labels=("noun",)), "q", ("an 🙂 and a cat",)), {"spans": [{"start": 11, "end": 14, "label": "noun"}]})  # fmt: skip
    records, omitted = write(one)
    assert not omitted
    again = json.loads(json.dumps(records))
    read(placed(again), FieldNames("prompt")).add_to(two)
    answers = [[(event.annotator, store.task(event.task).form.kind, event.value) for event in store.events()] for store in stores]  # fmt: skip
    assert answers[0] == answers[1]
    assert [(row["chosen"], row["margin"], row.get("topic")) for row in convert(one).preferences] == [
        (row["chosen"], row["margin"], row.get("topic")) for row in convert(two).preferences
    ]  # fmt: skip


def test_annotators_without_a_name_do_not_replace_each_other(stores):
    fields = {"prompt": "q", "response_1": "a", "response_2": "b"}
    answers = [{"value": "response_1", "user_id": None}, {"value": "response_2"}]
    from_argilla(placed([{"fields": fields, "responses": {"preference": answers}}])).add_to(stores[0])
    results = [{"result": [pairwise(side)]} for side in ("left", "right")]
    from_label_studio(placed([{"data": fields, "annotations": results}])).add_to(stores[1])
    for store in stores:
        found = [(event.annotator, event.value["preferred"]) for event in store.current()]
        assert found == [("unnamed 1", 0), ("unnamed 2", 1)]


@pytest.mark.parametrize(
    ("label", "names", "side"),
    [
        ("1", ("response_2", "response_1"), 1),
        ("2", ("text2", "text1"), 0),
        ("A", ("completionB", "completionA"), 1),
        ("1", ("response_0", "response_1"), 1),
        ("2", ("response_0", "response_1"), None),
        ("1", ("chosen", "rejected"), 0),
        ("Both bad", ("response_1", "response_2"), "both_bad"),
    ],
)
def test_a_label_is_a_name_before_it_is_a_side(label, names, side):
    assert side_of(label, names) == side


@pytest.mark.parametrize("write", [to_argilla, to_label_studio])
def test_a_flagged_task_does_not_go_out(stores, write):
    private = Task(PAIR, "my phone number is 12345", ("a", "b"))
    prefer(stores[0], Task(PAIR, "q", ("a", "b")), 1)
    prefer(stores[0], private, 1)
    say(stores[0], private, {"reason": "private"}, "bob", kind="flag")
    records, omitted = write(stores[0])
    assert len(records) == 1
    assert "12345" not in json.dumps(records)
    assert omitted == {"are flagged": 1}


def test_what_cannot_be_read_is_named():
    cases = [
        (from_argilla, {"text": "x"}, "record 0 is no record of Argilla"),
        (from_label_studio, {"text": "x"}, "record 0 is no task of Label Studio"),
        (from_argilla, {"fields": {"query": "q", "response": "a"}}, "no field prompt; it has query, response"),
        (from_argilla, {"fields": {"prompt": "q", "body": "a"}}, "no field with a completion"),
        (from_argilla, {"fields": {"prompt": "q", "response": "a"}, "responses": {"r": [{"value": 0, "user_id": "a"}]}}, "scales here go from 1"),
        (from_label_studio, {"data": {"prompt": "q", "text1": "a", "text2": "b"}, "annotations": [{"completed_by": 1, "result": [pairwise("left"), rated("strength", 5)]}]}, "strength is a whole number from 1 to 3"),
    ]  # fmt: skip
    for read, record, message in cases:
        with pytest.raises(InputError, match=message):
            read(placed([record]))
    named = FieldNames("query", ("body",))
    assert len(from_argilla(placed([{"fields": {"query": "q", "body": "a"}, "responses": {"r": [{"value": 3, "user_id": "a"}]}}]), named).tasks) == 1  # fmt: skip
