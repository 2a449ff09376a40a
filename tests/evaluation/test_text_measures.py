"""Measures of texts, by hand."""

import pytest
import torch

from hf_rlhf.evaluation.before_after import Comparison, Side
from hf_rlhf.evaluation.report_card.probes import REFUSALS
from hf_rlhf.evaluation.text_measures import (
    distinct_n,
    is_refusal,
    measure_texts,
    refusal_rate,
    repetition_rate,
    self_similarity,
)
from hf_rlhf.types import Completion, Trajectory


def test_distinct_n_grams_by_hand():
    assert distinct_n(["a b a b", "a b"], 1) == 2 / 6
    assert distinct_n(["a b a b", "a b"], 2) == 2 / 4  # ab ba ab, ab
    assert distinct_n(["a", ""], 2) is None


def test_self_similarity_by_hand():
    assert self_similarity(["a b", "b c", "a b"]) == pytest.approx((1 / 3 + 1 / 3 + 1) / 3)
    assert self_similarity(["one"]) is None
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert self_similarity(["x", "y", "z"], lambda texts: vectors) == pytest.approx((0 + 0.6 + 0.8) / 3)


def test_refusals_are_found_by_how_a_text_begins():
    assert all(map(is_refusal, REFUSALS))
    assert all(map(is_refusal, ["I can’t do that.", "  As an AI, I", "Unfortunately, I do not know", "I’m sorry"]))
    answers = ["Sure! I can help.", "Bread is not able to rise", "I cannon", "Sorrel is a plant", "He said sorry", ""]
    assert not any(map(is_refusal, answers))
    assert refusal_rate([*REFUSALS, "Yes."]) == 3 / 4


def test_repetition_counts_texts_that_say_the_same_again():
    assert repetition_rate(["yes yes yes yes", "one two three", "", "a b a b a b a b a b"]) == 2 / 4


def trajectory(text, finished=True):
    return Trajectory({"prompt": "p"}, [1], Completion(list(range(len(text.split()))), [], finished), text)


def test_the_quickstarts_table_and_an_evaluation_have_the_same_numbers():
    sides = [[trajectory("a b a b"), trajectory("c", False)], [trajectory("a b c"), trajectory("d e")]]
    made = [Side(each, [0.0, 1.0], [0.0, 2.0], [0.1, 0.1], [0.0, 0.5]) for each in sides]
    table = {row.metric: (row.before, row.after) for row in Comparison(*made).rows()}
    before, after = map(measure_texts, sides)
    assert table["replies finished"] == (before.finished, after.finished) == (0.5, 1.0)
    assert table["length (tokens)"] == (before.tokens, after.tokens) == (2.5, 2.5)
    assert table["distinct word pairs"] == (before.fluency, after.fluency) == (pytest.approx(5 / 6), 1.0)
    assert before.characters == 4.0
