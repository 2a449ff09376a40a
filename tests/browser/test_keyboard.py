"""Twenty tasks of every form, answered by keys alone."""

import json
from pathlib import Path

import pytest

from hf_rlhf.feedback import FeedbackStore, Field, Form, Task

GOLDEN = Path(__file__).parent / "golden_answers.jsonl"
PAIR, RANKING = Form("pairwise"), Form("ranking")
MANY = Form("rating", criteria=("helpful", "tone"), points=10)
SPANS = Form("span", labels=("false", "rude"))
CUSTOM = Form(
    "custom",
    fields=(
        Field("tone", "choice", options=("warm", "cold")),
        Field("length", "scale", low=0, high=10),
        Field("send", "checkbox"),
        Field("why", "text", required=False),
    ),
)
DIALOGUE = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi\n\n\tthere 👩‍💻"}]

STEPS = [
    (PAIR, 2, ["1"]),
    (PAIR, 2, ["3"]),
    (PAIR, 2, ["8"]),
    (PAIR, 2, ["0"]),
    (PAIR, 2, ["="]),
    (PAIR, 2, ["-"]),
    (PAIR, 2, ["ArrowRight", "ArrowRight", "Enter"]),
    (Form("pairwise", strengths=1), 2, ["ArrowLeft", "Enter"]),
    (PAIR, 2, ["c", "text:both are fine 😀 1", "Control+Enter", "9"]),
    (PAIR, 2, ["s"]),
    (PAIR, 2, ["f", "2"]),
    (RANKING, 3, ["3", "1", "2", "Enter"]),
    (RANKING, 4, ["1", "1", "2", "k", "k", "k", "k", "2", "j", "j", "j", "3", "Enter"]),
    (Form("rating"), 1, ["4"]),
    (MANY, 2, ["1", "0", "5", "9", "Enter"]),
    (Form("correction"), 1, ["e", "Control+End", "text: And 1 more. 😀", "Control+Enter"]),
    (Form("correction"), 1, ["Control+Enter"]),
    (SPANS, 1, ["ArrowRight", "ArrowRight", "Shift+ArrowRight", "1", "ArrowRight", "2", "Enter"]),
    (SPANS, 1, ["Enter"]),
    (CUSTOM, 2, ["2", "7", "1", "e", "text:too long", "Control+Enter"]),
]


@pytest.fixture
def store(tmp_path):
    with FeedbackStore(tmp_path / "feedback.db", clock=lambda: 1_800_000_000.0) as opened:
        opened.set("salt", "fixed")
        yield opened


def test_the_line_that_is_next_is_in_sight_above_the_answers(store, labeller):
    store.add_tasks([Task(MANY, DIALOGUE, ("first reply", "second reply"))])
    page = labeller(viewport={"width": 1024, "height": 600}).page
    page.wait_for_timeout(160)
    for key in ("1", "2", "3"):
        page.keyboard.press(key)
        page.wait_for_timeout(100)
        line, answers = (page.locator(each).bounding_box() for each in (".choices.current", "#bottom"))
        assert line["y"] + line["height"] <= answers["y"]


def test_twenty_tasks_by_keys_alone_are_stored_byte_for_byte(store, labeller):
    tasks = [
        Task(form, DIALOGUE, tuple(f"👋 reply {each} of\ntask {number}" for each in range(completions)))
        for number, (form, completions, _) in enumerate(STEPS)
    ]
    store.add_tasks(tasks)
    ann = labeller(reduced_motion="reduce")
    for number, (_form, _count, keys) in enumerate(STEPS):
        ann.page.wait_for_selector(f"#progress-words:has-text('{number} of 20')")
        ann.page.wait_for_timeout(160)
        for key in keys:
            if key.startswith("text:"):
                ann.page.keyboard.type(key.removeprefix("text:"))
            else:
                ann.page.keyboard.press(key)
    ann.page.wait_for_selector("h1:has-text('Thank you')")
    ann.wait_saved()
    numbers = {task.id: number for number, task in enumerate(tasks)}
    rows = [
        {
            "task": numbers[event.task],
            "kind": event.kind,
            "value": event.value,
            "comment": event.comment,
            "shown_order": event.shown_order,
            "created": event.created,
        }
        for event in store.events()
    ]
    assert all(0 < event.seconds < 20 for event in store.events())
    assert not ann.complaints
    text = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    (store.file.parent / GOLDEN.name).write_text(text, encoding="utf-8")  # to look at, and to copy when a form changes
    assert text == GOLDEN.read_text(encoding="utf-8")
