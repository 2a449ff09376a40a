"""The comparisons of benchmarks/segments.py at a small size: from questions to a policy, and what is measured."""

import sys
from pathlib import Path

import pytest


@pytest.fixture
def segments(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import segments

    monkeypatch.setattr(segments, "HELD_OUT_EPISODES", 60)
    monkeypatch.setattr(segments, "MEASURED_EPISODES", 8)
    yield segments
    for name in ("segments", "frozen_lake"):
        sys.modules.pop(name)


def test_a_hundred_comparisons_say_more_than_chance_about_segments_that_were_not_asked_about(segments):
    result = segments.run(0, 0.5, comparisons=100, epochs=6, iterations=1)
    assert result["answers"] == 100
    assert 0.75 < result["annotator_accuracy"] < 1  # it is wrong at times
    assert result["pair_accuracy"] > 0.65
    assert result["spearman"] > 0.4
    assert result["before"].keys() == result["after"].keys() >= {"return", "success", "greedy_success"}
    assert "held-out pairs" in segments.in_words(result)


def test_correlation_of_ranks(segments):
    assert segments.spearman([1, 2, 3, 4], [10, 20, 30, 400]) == pytest.approx(1)
    assert segments.spearman([1, 2, 2, 3], [3, 2, 2, 1]) == pytest.approx(-1)
    assert segments.spearman([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(0.9**0.5)  # by hand
