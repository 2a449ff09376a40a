"""The share of a text that repeats nothing."""

import pytest

from hf_rlhf.evaluation.fluency import fluency


def test_fluency_by_hand():
    assert fluency("one two three four") == 1.0
    assert fluency("word") == 1.0
    assert fluency("") == 0.0
    assert fluency("a b a b") == pytest.approx(2 / 3)  # bigrams ab, ba, ab
    assert fluency("a a b") == pytest.approx(1 / 2)  # both bigrams differ, one of two neighbors is a repeat
