import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from hf_rlhf.ops.masked import Moments, combine, masked_moments, masked_sum, whiten

NAN, INF = math.nan, math.inf
numbers = st.floats(-100, 100, width=32)
rows = st.lists(st.tuples(numbers, st.booleans()), min_size=2, max_size=20).filter(lambda row: any(m for _, m in row))


def tensors(row):
    return tensor([x for x, _ in row]), tensor([m for _, m in row])


def test_sum_counts_only_the_mask():
    x, mask = tensor([[1.0, NAN, 3.0], [INF, 5.0, NAN]]), tensor([[True, False, True], [False, True, False]])
    assert masked_sum(x, mask) == 9
    assert masked_sum(x, mask, dim=1).tolist() == [4, 5]
    assert masked_sum(tensor([[1.0, NAN], [3.0, NAN]]), tensor([True, False])) == 4  # the mask broadcasts


def test_gradient_stays_finite_beside_a_masked_nan():
    x = tensor([2.0, NAN], requires_grad=True)
    masked_sum(x, tensor([True, False])).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 0]


def test_moments_by_hand():
    mean, variance, count = masked_moments(tensor([1.0, 2.0, NAN, 3.0, 6.0]), tensor([True, True, False, True, True]))
    assert (mean.item(), variance.item(), count.item()) == (3.0, 3.5, 4)


def test_moments_of_half_precision_are_taken_in_float32():
    x = torch.full((1000,), 1.0, dtype=torch.bfloat16)
    x[0] = 2.0
    mean, _, _ = masked_moments(x, torch.ones(1000, dtype=torch.bool))
    assert mean.dtype == torch.float32
    assert mean.item() == pytest.approx(1.001)


@settings(deadline=None, max_examples=50)
@given(rows, rows)
def test_moments_of_the_parts_combine_to_those_of_the_whole(first, second):
    whole = masked_moments(*tensors(first + second))
    nothing = masked_moments(tensor([7.0]), tensor([False]))
    parts = [masked_moments(*tensors(first)), nothing, masked_moments(*tensors(second))]
    gathered = Moments(*(torch.stack(field) for field in zip(*parts, strict=True)))
    for combined in (combine(*parts), combine(gathered)):
        torch.testing.assert_close(combined, whole, rtol=1e-4, atol=1e-3)
        assert combined.count == whole.count


def test_moments_of_nothing_are_nan():
    mean, variance, count = combine(masked_moments(tensor([7.0]), tensor([False])))
    assert mean.isnan()
    assert variance.isnan()
    assert count == 0
    with pytest.raises(ValueError, match="at least one"):
        combine()


def test_whiten_by_hand():
    x, mask = tensor([1.0, NAN, 3.0, INF]), tensor([True, False, True, False])
    assert whiten(x, mask).tolist() == [-1, 0, 1, 0]
    assert whiten(x, mask, center=False).tolist() == [1, 0, 3, 0]  # the spread is 1 already, the mean 2 stays
    assert whiten(x, mask, moments=Moments(tensor(0.0), tensor(4.0), tensor(9))).tolist() == [0.5, 0, 1.5, 0]


@settings(deadline=None, max_examples=50)
@given(rows.filter(lambda row: len({round(x) for x, m in row if m}) > 1))
def test_whitened_values_have_mean_0_and_variance_1(row):
    x, mask = tensors(row)
    mean, variance, _ = masked_moments(whiten(x, mask), mask)
    assert mean.item() == pytest.approx(0, abs=1e-4)
    assert variance.item() == pytest.approx(1, abs=1e-3)
    mean, variance, _ = masked_moments(whiten(x, mask, center=False), mask)
    assert mean.item() == pytest.approx(masked_moments(x, mask).mean.item(), abs=1e-3)
    assert variance.item() == pytest.approx(1, abs=1e-3)


@settings(deadline=None, max_examples=50)
@given(numbers, st.integers(1, 2000), st.integers(1, 50))
def test_a_constant_whitens_to_exactly_0_however_its_sum_rounds(constant, size, other_size):
    x, mask = torch.full((size,), constant), torch.ones(size, dtype=torch.bool)
    assert (whiten(x, mask) == 0).all()
    moments = combine(masked_moments(x, mask), Moments(tensor(constant), tensor(0.0), tensor(other_size)))
    assert (whiten(x, mask, moments=moments) == 0).all()
    assert torch.equal(whiten(x, mask, center=False), x)


@settings(deadline=None, max_examples=30)
@given(rows, st.integers(1, 5))
def test_padding_changes_nothing(row, padding):
    x, mask = tensors(row)
    padded, padded_mask = torch.cat([x, torch.full((padding,), NAN)]), torch.cat([mask, mask.new_zeros(padding)])
    torch.testing.assert_close(masked_sum(padded, padded_mask), masked_sum(x, mask))
    torch.testing.assert_close(whiten(padded, padded_mask)[: len(x)], whiten(x, mask), rtol=1e-4, atol=1e-4)
    assert (whiten(padded, padded_mask)[len(x) :] == 0).all()
