import math

from torch import tensor

from hf_rlhf.ops.preference import preference_accuracy


def test_accuracy_counts_a_tie_half_and_does_not_hide_a_nan():
    assert preference_accuracy(tensor([2.0, 1.0, 1.0, 5.0]), tensor([1.0, 2.0, 1.0, 0.0])) == 0.625
    assert preference_accuracy(tensor([2.0, math.nan]), tensor([1.0, 0.0])).isnan()
