"""Annotators that are no people: every form, their noise, bias and tastes, and what the store has of them."""

import math
from collections import Counter
from statistics import fmean

import pytest

from hf_rlhf.errors import InputError
from hf_rlhf.feedback.annotators import JudgeAnnotator, annotate, annotate_tasks, ranks_of
from hf_rlhf.feedback.cheerful import CheerfulAnnotator
from hf_rlhf.feedback.forms import Field, Form
from hf_rlhf.feedback.rules import RuleAnnotator, panel, rate_texts
from hf_rlhf.feedback.similarity import similarity_annotator
from hf_rlhf.feedback.store import FeedbackStore
from hf_rlhf.feedback.tasks import Task
from hf_rlhf.judges.base import Judge


def good_words(text, finished=True):
    """Share of words that are "good"."""
    return text.split().count("good") / max(len(text.split()), 1)


RATE = rate_texts(good_words)
BEST, MIDDLE, WORST = "good good good good", "good good no no", "no no no no"


def pair(number=0, first=BEST, second=WORST, **settings):
    return Task(Form("pairwise"), f"question {number}", (first, second), **settings)


FORMS = {
    "pairwise": (Form("pairwise"), (WORST, BEST), {"preferred": 1, "strength": 3}),
    "one strength": (Form("pairwise", strengths=1), (WORST, BEST), {"preferred": 1, "strength": 1}),
    "tie": (Form("pairwise"), ("good no", "no good"), {"preferred": "tie"}),
    "ranking": (Form("ranking"), (MIDDLE, WORST, BEST, "no no good good"), {"ranks": [2, 3, 1, 2]}),
    "rating": (
        Form("rating", criteria=("tone", "sense")),
        (BEST, MIDDLE, WORST),
        {"ratings": {"tone": [5, 3, 1], "sense": [5, 3, 1]}},
    ),
    "correction": (Form("correction"), (WORST,), {"text": "better: no no no no"}),
    "span": (Form("span", labels=("bad", "rude")), (WORST,), {"spans": [{"start": 0, "end": 11, "label": "bad"}]}),
    "custom": (
        Form(
            "custom",
            fields=(
                Field("level", "scale", low=0, high=10),
                Field("tone", "choice", options=("cold", "mild", "warm")),
                Field("fine", "checkbox"),
                Field("why", "text"),
            ),
        ),
        (BEST,),
        {"fields": {"level": 10, "tone": "warm", "fine": True, "why": "good"}},
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_rule_answers_each_form_by_its_ratings(tmp_path, name):
    form, completions, expected = FORMS[name]
    annotator = RuleAnnotator(
        RATE, name="rule", bad_below=0.1 if form.kind == "span" else 0.0, correct="better: {}".format
    )
    with FeedbackStore(tmp_path / "feedback.db") as store:
        store.add_tasks([Task(form, "a question", completions)])
        assert annotate(store, annotator) == 1
        [event] = store.events()
    assert (event.kind, event.annotator, event.annotator_kind, event.value) == ("answer", "rule", "rule", expected)
    assert sorted(event.shown_order) == list(range(len(completions)))


def test_both_bad_where_no_completion_is_good_enough():
    assert RuleAnnotator(RATE, bad_below=0.6).answer(pair(0, MIDDLE, WORST), [0, 1]) == {"preferred": "both_bad"}


def test_noise_is_that_of_bradley_and_terry_and_position_bias_adds_to_it():
    noise, bias, n = 0.5, 0.3, 3000
    for order, shift in (([0, 1], bias), ([1, 0], -bias)):
        annotator = RuleAnnotator(RATE, noise=noise, position_bias=bias)
        wins = fmean(annotator.answer(pair(number), order)["preferred"] == 0 for number in range(n))
        expected = 1 / (1 + math.exp(-(1 + shift) / noise))
        assert wins == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / n))


def test_answers_depend_on_seed_annotator_and_task_alone():
    answers = {
        (seed, name): [RuleAnnotator(RATE, name, seed, noise=3.0).answer(pair(n), [0, 1]) for n in range(60)]
        for seed in (0, 1)
        for name in ("one", "two")
    }
    assert len({str(each) for each in answers.values()}) == 4
    again = RuleAnnotator(RATE, "one", 0, noise=3.0)
    assert [again.answer(pair(n), [0, 1]) for n in reversed(range(60))][::-1] == answers[0, "one"]


def test_an_own_opinion_of_a_text_is_the_same_in_each_task():
    annotator = RuleAnnotator(RATE, taste=0.5)
    alone, beside = annotator.opinions(pair(0, BEST, WORST)), annotator.opinions(pair(1, WORST, BEST))
    assert alone == beside[::-1]
    assert alone != RuleAnnotator(RATE, name="other", taste=0.5).opinions(pair(0, BEST, WORST))


def test_members_of_a_panel_disagree_and_answer_in_turns(tmp_path):
    members = panel(RATE, 3, taste=0.6)
    with FeedbackStore(tmp_path / "feedback.db") as store:
        store.add_tasks(pair(number, f"good {number} good no", f"good {number} no no") for number in range(60))
        assert annotate_tasks(store, members, list(store.tasks()), overlap=2) == 120
        events = store.events()
    assert set(Counter(event.annotator for event in events).values()) == {40}
    answers = {}
    for event in events:
        answers.setdefault(event.task, []).append(event.value["preferred"])
    assert all(len(each) == 2 for each in answers.values())
    assert 5 < sum(first != second for first, second in answers.values()) < 40
    with FeedbackStore(tmp_path / "feedback.db") as store:
        assert annotate_tasks(store, members, list(store.tasks()), overlap=2) == 0


def test_only_the_tasks_that_are_given_are_answered_and_those_of_another_kind_not_again(tmp_path):
    tasks = [pair(number) for number in range(3)]
    with FeedbackStore(tmp_path / "feedback.db") as store:
        store.add_tasks(tasks)
        annotate(store, RuleAnnotator(RATE, name="ann", kind="person"), limit=1)
        assert annotate_tasks(store, [RuleAnnotator(RATE)], tasks[:2]) == 1
        assert [(event.annotator, event.task) for event in store.events()] == [
            ("ann", tasks[0].id),
            ("simulated", tasks[1].id),
        ]


def test_the_same_answers_are_the_same_events_in_each_store_and_one_taken_back_is_asked_again(tmp_path):
    uuids = []
    for name in ("one", "two"):
        with FeedbackStore(tmp_path / name) as store:
            store.add_tasks(map(pair, range(3)))
            annotate(store, RuleAnnotator(RATE))
            uuids.append([event.uuid for event in store.events()])
    assert uuids[0] == uuids[1]
    with FeedbackStore(tmp_path / "two") as store:
        store.undo("simulated", "an undo")
        assert annotate(store, RuleAnnotator(RATE)) == 1
        assert len(store.current()) == 3


def test_offset_and_scale_shift_ratings():
    task = Task(Form("rating"), "a question", (MIDDLE,))
    levels = [RuleAnnotator(RATE, offset=offset).answer(task, [0])["ratings"]["quality"] for offset in (-0.5, 0, 0.5)]
    assert levels == [[1], [3], [5]]


def test_a_cut_off_completion_is_rated_as_one():
    annotator = RuleAnnotator(rate_texts(CheerfulAnnotator().rate))
    text = "That sounds lovely! I hope you enjoy every minute of it."
    task = pair(0, text, text + " ", columns={"finished": [False, True]})
    assert annotator.answer(task, [0, 1])["preferred"] == 1


def test_a_correction_is_better_and_a_good_reply_stays():
    annotator = CheerfulAnnotator()
    poor = "The store opens at nine. There are further rules on the door, which nobody has ever read"
    assert annotator.rate(annotator.correct(poor)) > annotator.rate(poor)
    good = "That sounds lovely! I hope you enjoy every minute of it."
    assert annotator.correct(good) == good


def test_completions_near_a_persons_reference_are_preferred_and_a_task_without_one_is_skipped(tmp_path):
    near, far = "A dog is running through the park.", "The interest rate was raised again."
    reference = {"reference": "A puppy runs in a garden."}
    annotator = similarity_annotator()
    with FeedbackStore(tmp_path / "feedback.db") as store:
        store.add_tasks([pair(0, far, near, columns=reference), pair(1, far, near)])
        store.add_tasks([Task(Form("rating"), "a question", (far, near), columns=reference)])
        assert annotate(store, annotator) == 3
        answer, skipped, rated = store.events()
    assert answer.value["preferred"] == 1
    assert (skipped.kind, skipped.value) == ("skip", None)
    low, high = rated.value["ratings"]["quality"]
    assert low < high


class LongerIsBetter(Judge):
    """A judge that prefers the longer completion, or always the one shown first."""

    cache_key = None

    def __init__(self, *, by_place=False):
        super().__init__("longer")
        self.by_place, self.calls = by_place, []

    def _prefer_first(self, questions, on_done):
        self.calls.append(questions)
        if self.by_place:
            return [0.9] * len(questions)
        return [float(len(a) > len(b)) for a, b in (question.completions for question in questions)]

    def _rate(self, questions, on_done):
        self.calls.append(questions)
        return [min(5.0, 1 + len(question.completions[0]) / 3) for question in questions]


def test_a_judge_answers_as_a_model(tmp_path):
    tasks = [Task(Form(kind), "a question", ("abc", "abcdef")) for kind in ("pairwise", "ranking", "rating")]
    with FeedbackStore(tmp_path / "feedback.db") as store:
        store.add_tasks(tasks)
        assert annotate(store, JudgeAnnotator(LongerIsBetter())) == 3
        events = store.events()
    assert {event.annotator_kind for event in events} == {"model"}
    assert [event.value for event in events] == [
        {"preferred": 1, "strength": 1},
        {"ranks": [2, 1]},
        {"ratings": {"quality": [2, 3]}},
    ]


def test_a_judge_is_asked_in_parts_and_its_answers_are_those_to_single_tasks(tmp_path):
    texts = [("x" * (number % 7), "y" * (number % 5)) for number in range(40)]
    tasks = [
        Task(Form(("pairwise", "rating")[number % 2], question=f"question {number % 3}"), f"prompt {number}", pair)
        for number, pair in enumerate(texts)
    ]
    judge = LongerIsBetter()
    with FeedbackStore(tmp_path / "feedback.db") as store:
        store.add_tasks(tasks)
        annotate(store, JudgeAnnotator(LongerIsBetter()), limit=3)  # a run that was stopped
        assert annotate_tasks(store, [JudgeAnnotator(judge)], tasks) == 37
        found = {event.task: event.value for event in store.current()}
    assert [len(questions) for questions in judge.calls] == [2 * 6, 2 * 7, 2 * 8, 2 * 8, 2 * 4, 2 * 4]
    assert found == {task.id: JudgeAnnotator(LongerIsBetter()).answer(task, [0, 1]) for task in tasks}
    asked = {each.prompt: each.text for each in judge.calls[0]}
    assert asked[tasks[4].prompt] == "question 1"


def test_a_judge_that_prefers_a_place_gives_ties():
    assert JudgeAnnotator(LongerIsBetter(by_place=True)).answer(pair(), [0, 1]) == {"preferred": "tie"}


def test_a_judge_refuses_a_form_that_it_cannot_answer():
    with pytest.raises(InputError, match="form=correction is invalid for a judge"):
        JudgeAnnotator(LongerIsBetter()).answer(Task(Form("correction"), "a question", ("text",)), [0])


def test_ranks_share_a_place_where_numbers_are_alike():
    assert ranks_of([0.1, 0.9, 0.85, 0.1], alike=0.06) == [2, 1, 1, 2]
    assert ranks_of([0.1, 0.9, 0.85, 0.1]) == [3, 1, 2, 3]
