"""What two answers in two orders mean, worked by hand."""

import math

import pytest

from hf_rlhf.judges.comparison import Comparison, agreement


@pytest.mark.parametrize(
    ("shown_first", "shown_second", "preference", "margin", "survived"),
    [
        (1.0, 1.0, 1.0, 1.0, True),
        (0.0, 0.0, 0.0, 1.0, True),
        (1.0, 0.0, 0.5, 0.0, False),  # always the one shown first
        (0.9, 0.4, 0.5, 0.3, False),
        (0.5, 1.0, 0.5, 0.5, False),  # equal in one order
        (0.6, 0.8, 1.0, 0.4, True),
    ],
)
def test_agreement_of_both_orders_is_a_preference_and_disagreement_a_tie(
    shown_first, shown_second, preference, margin, survived
):
    comparison = Comparison(shown_first, shown_second)
    assert comparison.preference == preference
    assert comparison.margin == pytest.approx(margin)
    assert comparison.survived_swap is survived


@pytest.mark.parametrize("comparison", [Comparison(None, 1.0), Comparison(1.0, None), Comparison(None, None)])
def test_a_missing_answer_is_no_preference_and_no_tie(comparison):
    assert comparison.preference is None
    assert comparison.margin is None
    assert comparison.probability is None
    assert not comparison.survived_swap


def test_what_survives_swapping_is_counted_among_the_answered_pairs():
    found = agreement([Comparison(1.0, 1.0), Comparison(1.0, 0.0), Comparison(0.5, 0.5), Comparison(None, 1.0)])
    assert (found.pairs, found.unanswered, found.survived, found.ties) == (4, 1, 1, 2)
    assert found.survived_share == pytest.approx(1 / 3)
    assert found.shown_first_share == 3 / 4  # A, B; A, A; none
    assert found.mean_position_shift == pytest.approx((0.5 - 0.5 + 0.5 + 0.5 + 0 + 0) / 6)


def test_without_an_answer_the_shares_are_unknown_and_not_zero():
    assert agreement([Comparison(None, None)]).row() == {
        "pairs": 1,
        "unanswered": 1,
        "survived": 0,
        "ties": 0,
        "survived_share": None,
        "shown_first_share": None,
        "mean_position_shift": None,
        "survived_share_uncorrected": None,
    }


def test_the_answers_before_the_correction_are_found_again_and_counted():
    found = Comparison(0.75, 0.6, position_log_odds=2.0)
    odds = math.exp(2.0)
    assert found.uncorrected.shown_first == pytest.approx(3 * odds / (3 * odds + 1))
    assert found.uncorrected.shown_second == pytest.approx(1.5 / odds / (1.5 / odds + 1))
    assert agreement([found]).survived_share == 1
    assert agreement([found]).survived_share_uncorrected == 0
