"""The meaning of two answers in two orders, worked by hand."""

import math

import pytest

from hf_rlhf.judges.comparison import Comparison, agreement, corrected_for_position


@pytest.mark.parametrize(
    ("shown_first", "shown_second", "preference", "confidence", "survived"),
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
    shown_first, shown_second, preference, confidence, survived
):
    comparison = Comparison(shown_first, shown_second)
    assert comparison.preference == preference
    assert comparison.confidence == pytest.approx(confidence)
    assert comparison.survived_swap is survived


@pytest.mark.parametrize("comparison", [Comparison(None, 1.0), Comparison(1.0, None), Comparison(None, None)])
def test_a_missing_answer_is_no_preference_and_no_tie(comparison):
    assert comparison.preference is None
    assert comparison.confidence is None
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


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_the_place_is_taken_out_as_the_other_pairs_show_it():
    content, place = [0.4, -0.3, 0.1], [3.0, 3.2, 2.5]
    raw = [Comparison(sigmoid(c + p), sigmoid(c - p)) for c, p in zip(content, place, strict=True)]
    assert agreement(raw).survived_share == 0
    found = corrected_for_position(raw)
    others = [(3.2 + 2.5) / 2, (3.0 + 2.5) / 2, (3.0 + 3.2) / 2]
    for comparison, before, c, p, other in zip(found, raw, content, place, others, strict=True):
        assert comparison.shown_first == pytest.approx(sigmoid(c + p - other))
        assert comparison.shown_second == pytest.approx(sigmoid(c - p + other))
        assert comparison.uncorrected.shown_first == pytest.approx(before.shown_first)
    assert [each.survived_swap for each in found] == [True, False, False]
    assert agreement(found).survived_share_uncorrected == 0


@pytest.mark.parametrize(
    "comparisons",
    [
        [Comparison(0.9, 0.2)],  # alone, it would decide about itself
        [Comparison(1.0, 0.0), Comparison(0.9, 0.2)],  # words
        [Comparison(None, 0.2), Comparison(0.9, 0.2)],
        [],
    ],
)
def test_without_other_probabilities_nothing_is_corrected(comparisons):
    assert corrected_for_position(comparisons) == comparisons


def test_a_correction_does_not_hide_how_much_the_judge_prefers_a_place():
    raw = [Comparison(sigmoid(c + 3), sigmoid(c - 3)) for c in (0.4, -0.3, 0.1)]
    before, after = agreement(raw), agreement(corrected_for_position(raw))
    assert (before.survived, after.survived) == (0, 3)
    assert before.shown_first_share == after.shown_first_share == 1
    assert after.mean_position_shift == pytest.approx(before.mean_position_shift)
    assert before.mean_position_shift > 0.4


def test_one_certain_answer_leaves_the_correction_of_all_others():
    """A probability of a large logit is 1 in fp32."""
    raw = [Comparison(sigmoid(c + 3), sigmoid(c - 3)) for c in (0.4, -0.3, 0.1)]
    certain = Comparison(1.0, 0.99)
    assert corrected_for_position([*raw, certain]) == [*corrected_for_position(raw), certain]
