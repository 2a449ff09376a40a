"""Coefficients of agreement give the numbers of the literature."""

import math

import numpy as np
import pytest

from hf_rlhf.feedback.coefficients import (
    Resampled,
    cohens_kappa,
    coincidences,
    kendalls_w,
    krippendorff_alpha,
    percent_agreement,
    wilson,
)

# Four coders, twelve units, None for a missing value: the example of Krippendorff, "Computing
# Krippendorff's Alpha-Reliability" (2011), part C.
KRIPPENDORFF = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]
NUMBERS = [1, 2, 3, 4, 5]


def of_krippendorff() -> np.ndarray:
    units = [[row[unit] - 1 for row in KRIPPENDORFF if row[unit] is not None] for unit in range(12)]
    return coincidences(units, 5)


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_krippendorffs_example(level, alpha):
    assert float(krippendorff_alpha(of_krippendorff().sum(0), level, NUMBERS)) == pytest.approx(alpha, abs=5e-4)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_alpha_is_that_of_the_library(level):
    library = pytest.importorskip("krippendorff", reason="the krippendorff package is not installed")
    rng = np.random.default_rng(0)
    data = rng.choice([1, 2, 4, 7], size=(5, 40))
    missing = rng.random(data.shape) < 0.3
    units = [[[1, 2, 4, 7].index(v) for v, gone in zip(*column, strict=True) if not gone] for column in zip(data.T, missing.T, strict=True)]  # fmt: skip
    expected = library.alpha(np.where(missing, np.nan, data), level_of_measurement=level)
    found = krippendorff_alpha(coincidences(units, 4).sum(0), level, [1, 2, 4, 7])
    assert float(found) == pytest.approx(expected, abs=1e-12)


def test_alpha_is_undefined_where_all_values_are_equal():
    assert math.isnan(krippendorff_alpha(coincidences([[0, 0], [0, 0]], 2).sum(0), "nominal", [0, 1]))
    assert float(krippendorff_alpha(coincidences([[0, 0], [1, 1]], 2).sum(0), "nominal", [0, 1])) == 1


def test_percent_counts_pairs_of_annotations():
    # (a, a, b): one of three pairs agrees; (a, a): one of one. Weighted by annotations: (3 / 3 + 2 * 1) / 5.
    assert float(percent_agreement(coincidences([[0, 0, 1], [0, 0], [1]], 2).sum(0))) == pytest.approx(3 / 5)


def test_kappa_of_cohens_formula_by_hand():
    # 25 both yes, 10 yes/no, 15 no/yes, 20 both no: p_o = 45/70, p_e = (35*40 + 35*30) / 70^2 = 0.5.
    assert float(cohens_kappa(np.array([[25, 10], [15, 20]]))) == pytest.approx((45 / 70 - 0.5) / 0.5)


def test_linear_weights_count_the_distance():
    near, far = np.diag([5.0, 5, 5]), np.diag([5.0, 5, 5])
    near[0, 1] = far[0, 2] = 5
    assert float(cohens_kappa(near, [1, 2, 3])) > float(cohens_kappa(far, [1, 2, 3]))
    # by hand: sum w o = 5, rows (10, 5, 5), columns (5, 10, 5), sum w e = (10*10 + 10*5*2 + 5*5 + 5*5 + 5*5*2 + 5*10) / 20
    assert float(cohens_kappa(near, [1, 2, 3])) == pytest.approx(1 - 5 / (350 / 20))


def test_kendalls_w_with_and_without_ties():
    assert kendalls_w([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]]) == 1
    assert kendalls_w([[1, 2, 3], [3, 2, 1]]) == 0
    # by hand: rank sums 8, 14, 11, 9, 13, 8 about their mean 10.5 give S = 33.5, and W = 12 * 33.5 / (9 * 210)
    assert kendalls_w([[1, 6, 3, 2, 5, 4], [1, 5, 6, 2, 4, 3], [6, 3, 2, 5, 4, 1]]) == pytest.approx(
        12 * 33.5 / (9 * 210)
    )
    assert kendalls_w([[1, 2, 2], [1, 2, 2]]) == pytest.approx(1)
    assert math.isnan(kendalls_w([[1, 1, 1], [1, 1, 1]]))


def test_an_interval_is_the_same_each_time_and_holds_the_value():
    found, again = (
        Resampled.of(of_krippendorff()).estimate(lambda sums: krippendorff_alpha(sums, "nominal", NUMBERS))
        for _ in range(2)
    )
    assert found == again
    assert found.low < found.value < found.high <= 1


def test_a_bootstrap_interval_holds_the_truth_at_its_rate():
    rng, held = np.random.default_rng(3), 0
    for trial in range(200):
        agrees = rng.random(100) < 0.7
        parts = coincidences([[0, 0] if each else [0, 1] for each in agrees], 2)
        found = Resampled.of(parts, seed=trial, resamples=200).estimate(percent_agreement)
        held += found.low <= 0.7 <= found.high
    assert 0.89 <= held / 200 <= 0.99


def test_wilson_interval():
    assert wilson(8, 10) == pytest.approx((0.8, 0.490162, 0.943318), abs=1e-5)
    assert wilson(0, 0) == (None, None, None)
