import math

import pytest

from hf_rlhf.errors import InputError
from hf_rlhf.evaluation.thresholds import average_precision, choose_point, operating_point, precision_recall

# Worked by hand: thresholds 0.9, 0.8, 0.6, 0.5, 0.2 flag 1, 2, 4, 5, 6 rows, of which 1, 1, 3, 3, 4 are positive
SCORES = [0.2, 0.9, 0.6, 0.8, 0.6, 0.5]
LABELS = [True, True, True, False, True, False]


def test_the_curve_of_a_set_worked_by_hand():
    points = precision_recall(SCORES, LABELS)
    assert [point.threshold for point in points] == [0.9, 0.8, 0.6, 0.5, 0.2]
    assert [(point.flagged, point.hits) for point in points] == [(1, 1), (2, 1), (4, 3), (5, 3), (6, 4)]
    assert [point.precision for point in points] == [1, 1 / 2, 3 / 4, 3 / 5, 4 / 6]
    assert [point.recall for point in points] == [1 / 4, 1 / 4, 3 / 4, 3 / 4, 1]
    assert points[2].f1 == 2 * (3 / 4) * (3 / 4) / (3 / 4 + 3 / 4)


def test_average_precision_weights_each_precision_by_the_recall_that_it_adds():
    expected = 1 / 4 * 1 + 0 + 2 / 4 * 3 / 4 + 0 + 1 / 4 * 4 / 6
    assert average_precision(precision_recall(SCORES, LABELS)) == pytest.approx(expected, abs=1e-15)
    assert average_precision(precision_recall([1.0, 1.0], [True, False])) == 0.5  # chance, where all scores are equal


def test_rows_of_one_score_are_flagged_together_whatever_their_order():
    assert precision_recall([1.0, 1.0, 1.0], [True, False, False]) == precision_recall([1.0] * 3, [False, False, True])


def test_a_point_of_the_curve_is_what_its_threshold_flags():
    for point in precision_recall(SCORES, LABELS):
        assert operating_point(SCORES, LABELS, point.threshold) == point


@pytest.mark.parametrize(
    ("limits", "threshold"),
    [({}, 0.2), ({"min_precision": 0.7}, 0.6), ({"min_precision": 0.9}, 0.9), ({"min_recall": 0.5}, 0.6)],
    ids=str,
)
def test_the_chosen_threshold_keeps_the_limit_and_gets_most_of_the_other(limits, threshold):
    assert choose_point(precision_recall(SCORES, LABELS), **limits).threshold == threshold


@pytest.mark.parametrize(
    ("labels", "limits", "message"),
    [
        ([False, True], {"min_precision": 0.8}, "min_precision=0.8 is invalid: the highest precision .* is 0.500"),
        ([False, False], {}, "none of the rows is labeled positive"),
        ([False, True], {"min_precision": 0.8, "min_recall": 0.1}, "together with min_recall=0.1"),
    ],
)
def test_a_limit_that_no_threshold_keeps_is_refused(labels, limits, message):
    with pytest.raises(InputError, match=message):
        choose_point(precision_recall([2.0, 1.0], labels), **limits)


def test_rates_that_are_not_defined_are_none_and_never_zero():
    nothing_flagged = operating_point(SCORES, LABELS, 2.0)
    assert math.isnan(nothing_flagged.precision)
    assert (nothing_flagged.to_dict()["precision"], nothing_flagged.to_dict()["precision_low"]) == (None, None)
    assert nothing_flagged.to_dict()["recall"] == 0
    assert operating_point(SCORES, [False] * 6, 0.0).to_dict()["recall"] is None


@pytest.mark.parametrize(("scores", "labels"), [([], []), ([1.0], []), ([math.nan], [True])])
def test_sets_that_have_no_curve_are_errors(scores, labels):
    with pytest.raises(ValueError, match=r"give one of each|not a finite"):
        precision_recall(scores, labels)
