"""Win rates and summaries, with intervals worked by hand."""

import math

import pytest

from hf_rlhf.evaluation.metrics import BeforeAfter, summarize, wilson_interval, win_rate


def test_win_rate_counts_ties_half():
    result = win_rate([0.1, 0.5, 0.5, 0.9], [0.2, 0.5, 0.7, 0.3])
    assert (result.wins, result.ties, result.losses, result.n) == (2, 1, 1, 4)
    assert result.rate == pytest.approx(2.5 / 4)


def test_equal_models_win_half():
    result = win_rate([0.3] * 10, [0.3] * 10)
    assert result.rate == 0.5
    assert result.low < 0.5 < result.high


def test_swapping_the_models_mirrors_the_interval():
    before, after = [0.1, 0.5, 0.5, 0.9, 0.2], [0.2, 0.5, 0.7, 0.3, 0.4]
    there, back = win_rate(before, after), win_rate(after, before)
    assert (back.rate, back.low, back.high) == pytest.approx((1 - there.rate, 1 - there.high, 1 - there.low))


def test_wilson_interval_by_hand():
    # p = 8/10, z = 2: center 0.8 + 0.2 = 1.0, half width 2 * sqrt(0.016 + 0.01), scale 1.4.
    half = 2 * math.sqrt(0.026)
    assert wilson_interval(0.8, 10, z=2.0) == pytest.approx(((1 - half) / 1.4, (1 + half) / 1.4))


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_wilson_interval_stays_inside_and_has_width_at_the_ends(rate):
    low, high = wilson_interval(rate, 20)
    assert 0.0 <= low < high <= 1.0


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([0.1], [0.1, 0.2], "1 ratings before and 2 after"),
        ([], [], "empty"),
        ([0.1], [math.nan], r"after\[0\]=nan"),
        ([math.inf], [0.0], r"before\[0\]=inf"),
    ],
)
def test_bad_ratings_are_refused(before, after, message):
    with pytest.raises(ValueError, match=message):
        win_rate(before, after)


def test_summary_by_hand():
    summary = summarize([1.0, 3.0])
    assert (summary.n, summary.mean) == (2, 2.0)
    assert summary.std == pytest.approx(math.sqrt(2))
    assert summary.high - summary.mean == pytest.approx(1.959964)
    assert summary.mean - summary.low == pytest.approx(1.959964)


def test_summary_of_one_number_and_of_none():
    assert summarize([0.4]).std == 0.0
    with pytest.raises(ValueError, match="empty"):
        summarize([])


def test_rows_are_formatted_with_a_signed_change():
    assert BeforeAfter("score", 0.25, 0.8).formatted() == ("0.25", "0.80", "+0.55")
    assert BeforeAfter("length", 38.0, 21.5, digits=1).formatted() == ("38.0", "21.5", "-16.5")
    assert BeforeAfter("finished", 0.25, 0.95, digits=0, percent=True).formatted() == ("25%", "95%", "+70 pp")


def test_the_change_that_is_shown_is_that_of_the_numbers_shown():
    row = BeforeAfter("distinct word pairs", 0.9858, 0.9942, digits=0, percent=True)
    assert row.formatted() == ("99%", "99%", "+0 pp")
    assert BeforeAfter("score", 0.254, 0.246).formatted() == ("0.25", "0.25", "+0.00")
    assert BeforeAfter("finished", 0.44, 0.96, digits=0, percent=True).formatted() == ("44%", "96%", "+52 pp")
