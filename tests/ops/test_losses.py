import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from hf_rlhf.ops.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    truncated_importance_weights,
)

NAN, INF = math.nan, math.inf
LOG_2 = math.log(2)


def gradient(loss, of):
    (grad,) = torch.autograd.grad(loss, of)
    return grad.tolist()


def numbers(stats):
    return {name: pytest.approx(value.item(), abs=1e-6) for name, value in stats.items()}


def policy_loss_of(ratios, advantages, cliprange=0.2, **options):
    logprobs = tensor(ratios).log().requires_grad_()
    mask = torch.ones(len(ratios), dtype=torch.bool)
    old_logprobs = torch.zeros_like(logprobs)
    return logprobs, clipped_policy_loss(logprobs, old_logprobs, tensor(advantages), mask, cliprange, **options)


def test_policy_loss_by_hand():
    # min(2*1, 1.2*1) + min(2*-1, 1.2*-1) + min(0.5*1, 0.8*1) + min(0.5*-1, 0.8*-1) = 1.2 - 2 + 0.5 - 0.8
    _, (loss, stats) = policy_loss_of([2.0, 2.0, 0.5, 0.5], [1.0, -1.0, 1.0, -1.0])
    assert loss.item() == pytest.approx(1.1)
    assert numbers(stats) == {
        "clip_fraction": 2.0,
        "dual_clip_fraction": 0.0,
        "approx_kl": 4 * 0.5 * LOG_2**2,
        "ratio": 5.0,
        "ratio_deviation_squared": 2.5,  # 1 + 1 + 0.25 + 0.25
    }


def test_a_token_gives_no_gradient_once_it_moved_far_enough_in_the_right_direction():
    logprobs, (loss, _) = policy_loss_of([2.0, 2.0, 0.5, 0.5], [1.0, -1.0, 1.0, -1.0])
    assert gradient(loss, logprobs) == pytest.approx([0, 2, -0.5, 0])  # d(-r A) / d logprob = -r A


def test_the_first_update_is_plain_policy_gradient():
    logprobs, (loss, stats) = policy_loss_of([1.0, 1.0], [3.0, -2.0])
    assert gradient(loss, logprobs) == pytest.approx([-3, 2])
    assert numbers(stats) == {
        "clip_fraction": 0,
        "dual_clip_fraction": 0,
        "approx_kl": 0,
        "ratio": 2,
        "ratio_deviation_squared": 0,
    }


def test_gradient_flows_into_the_new_logprobs_only():
    logprobs, old_logprobs, advantages = (torch.ones(2, requires_grad=True) for _ in range(3))
    loss, stats = clipped_policy_loss(logprobs, old_logprobs, advantages, tensor([True, True]), 0.2)
    loss.backward()
    assert old_logprobs.grad is None
    assert advantages.grad is None
    assert not any(value.requires_grad for value in stats.values())


@pytest.mark.parametrize("rubbish", [NAN, INF, 1e30])
def test_policy_loss_never_sees_what_does_not_count(rubbish):
    logprobs = tensor([LOG_2, rubbish, 0.0], requires_grad=True)
    other, mask = tensor([0.0, -rubbish, 0.0]), tensor([True, False, True])
    loss, stats = clipped_policy_loss(logprobs, other, tensor([1.0, rubbish, 1.0]), mask, 0.2)
    assert loss.item() == pytest.approx(-2.2)
    assert gradient(loss, logprobs) == [0, 0, -1]
    counts = {"clip_fraction": 1, "dual_clip_fraction": 0}
    assert numbers(stats) == {**counts, "approx_kl": 0.5 * LOG_2**2, "ratio": 3, "ratio_deviation_squared": 1}


@pytest.mark.parametrize("rubbish", [NAN, INF, -INF])
def test_neither_dual_clip_nor_weights_let_in_what_does_not_count(rubbish):
    logprobs, other = tensor([4 * LOG_2, rubbish], requires_grad=True), tensor([0.0, -rubbish])
    mask, weights = tensor([True, False]), tensor([0.5, rubbish])
    loss, stats = clipped_policy_loss(logprobs, other, tensor([-1.0, rubbish]), mask, 0.2, dual_clip=3, weights=weights)
    assert loss.item() == pytest.approx(1.5)
    assert gradient(loss, logprobs) == [0, 0]
    assert stats["dual_clip_fraction"] == 1


def test_a_higher_upper_bound_lets_likely_tokens_grow_further_and_changes_no_lower_bound():
    # min(1.25*1, 1.25*1) + min(2*1, 1.3*1) + min(0.7*-1, 0.8*-1) + min(0.5*1, 0.8*1) = 1.25 + 1.3 - 0.8 + 0.5
    case = [1.25, 2.0, 0.7, 0.5], [1.0, 1.0, -1.0, 1.0]
    logprobs, (loss, stats) = policy_loss_of(*case, cliprange_high=0.3)
    assert loss.item() == pytest.approx(-2.25)
    assert gradient(loss, logprobs) == pytest.approx([-1.25, 0, 0, -0.5])
    assert stats["clip_fraction"] == 2
    _, (symmetric, stats) = policy_loss_of(*case)
    assert symmetric.item() == pytest.approx(-(1.2 + 1.2 - 0.8 + 0.5))
    assert stats["clip_fraction"] == 3


def test_an_upper_clip_range_of_0_is_not_taken_for_none():
    _, (loss, _) = policy_loss_of([1.1], [1.0], cliprange_high=0.0)
    assert loss.item() == pytest.approx(-1)


def test_the_dual_clip_bounds_what_an_unwanted_token_weighs():
    # max(min(4*-2, 1.2*-2), 3*-2) = -6, max(min(2*-2, 1.2*-2), -6) = -4, max(min(0.5*-2, 0.8*-2), -6) = -1.6: the first
    # is at the new bound, the third at the old one; and a wanted token at ratio 4 stays min(4*2, 1.2*2) = 2.4.
    logprobs, (loss, stats) = policy_loss_of([4.0, 2.0, 0.5, 4.0], [-2.0, -2.0, -2.0, 2.0], dual_clip=3.0)
    assert loss.item() == pytest.approx(6 + 4 + 1.6 - 2.4)
    assert gradient(loss, logprobs) == pytest.approx([0, 4, 0, 0])
    assert stats["clip_fraction"] == 3
    assert stats["dual_clip_fraction"] == 1


@settings(deadline=None, max_examples=50)
@given(st.floats(-3, 3), st.sampled_from([-2.0, -0.1, 0.1, 2.0]), st.floats(0.05, 0.5), st.floats(1.1, 5))
def test_the_clip_fraction_counts_the_tokens_without_gradient(log_ratio, advantage, cliprange_high, dual_clip):
    logprobs = tensor([log_ratio], dtype=torch.float64, requires_grad=True)
    old_logprobs, mask = torch.zeros_like(logprobs), tensor([True])
    options = {"cliprange_high": cliprange_high, "dual_clip": dual_clip}
    loss, stats = clipped_policy_loss(logprobs, old_logprobs, tensor([advantage]).double(), mask, 0.2, **options)
    assert stats["clip_fraction"] == (gradient(loss, logprobs) == [0])


@pytest.mark.parametrize("dual_clip", [1.0, 0.5])
def test_a_dual_clip_that_would_stop_the_first_update_is_an_error(dual_clip):
    with pytest.raises(ValueError, match=f"dual_clip={dual_clip} must be above 1"):
        policy_loss_of([1.0], [1.0], dual_clip=dual_clip)


def test_weights_multiply_loss_and_gradient_and_leave_the_statistics():
    weights = tensor([0.5, 2.0, 3.0], requires_grad=True)
    _, (_, plain_stats) = policy_loss_of([2.0, 2.0, 1.0], [1.0, -1.0, 1.0])
    logprobs, (loss, stats) = policy_loss_of([2.0, 2.0, 1.0], [1.0, -1.0, 1.0], weights=weights)
    assert loss.item() == pytest.approx(-0.5 * 1.2 + 2 * 2 - 3)
    loss.backward()
    assert logprobs.grad.tolist() == pytest.approx([0, 4, -3])
    assert weights.grad is None
    assert numbers(stats) == numbers(plain_stats)


def test_importance_weights_are_cut_off_above_and_not_below():
    old, sampler = tensor([[4.0, 1.0, 0.25, 1.0]]).log(), tensor([[1.0, 1.0, 1.0, 0.5]]).log()
    mask = torch.ones(1, 4, dtype=torch.bool)
    weights = truncated_importance_weights(old.requires_grad_(), sampler, mask, cap=2.5)
    torch.testing.assert_close(weights, tensor([[2.5, 1.0, 0.25, 2.0]]))
    assert not weights.requires_grad


@pytest.mark.parametrize("rubbish", [NAN, INF, -INF])
def test_importance_weights_are_1_where_nothing_counts(rubbish):
    weights = truncated_importance_weights(
        tensor([[rubbish, 0.0]]), tensor([[0.0, LOG_2]]), tensor([[False, True]]), 0.7
    )
    torch.testing.assert_close(weights, tensor([[1.0, 0.5]]))


def test_importance_weights_hide_no_nan():
    assert truncated_importance_weights(tensor([NAN]), tensor([0.0]), tensor([True]), 2.0).isnan().all()


def test_importance_weights_undo_the_samplers_error_where_the_cap_leaves_them():
    """The mean over the sampler of weight times anything is its mean over the trainer's own policy."""
    old, sampler = tensor([0.5, 0.3, 0.2]).log(), tensor([0.4, 0.4, 0.2]).log()
    values = tensor([3.0, -1.0, 7.0])
    weights = truncated_importance_weights(old, sampler, torch.ones(3, dtype=torch.bool), cap=2.0)
    torch.testing.assert_close((sampler.exp() * weights * values).sum(), (old.exp() * values).sum())


def value_loss_of(values, old_values, returns, cliprange_value, mask=None):
    values = tensor(values, requires_grad=True)
    mask = torch.ones(len(values), dtype=torch.bool) if mask is None else tensor(mask)
    return values, clipped_value_loss(values, tensor(old_values), tensor(returns), mask, cliprange_value)


def test_value_loss_by_hand():
    # Towards the return: V = 3 from W = 0 to R = 4 is clipped to 1: max((3-4)^2, (1-4)^2) = 9, and no gradient.
    # Away from it: V = -3 is clipped to -1: max((-3-4)^2, (-1-4)^2) = 49.  In range: (0.5-4)^2 = 12.25.
    values, (loss, stats) = value_loss_of([3.0, -3.0, 0.5], [0.0, 0.0, 0.0], [4.0, 4.0, 4.0], 1.0)
    assert loss.item() == pytest.approx(0.5 * (9 + 49 + 12.25))
    assert gradient(loss, values) == pytest.approx([0, -7, -3.5])
    assert numbers(stats) == {"clip_fraction": 1}


def test_values_are_clipped_around_the_old_values():
    _, (loss, _) = value_loss_of([13.0], [10.0], [14.0], 1.0)  # clipped to 11
    assert loss.item() == pytest.approx(4.5)


def test_values_inside_the_clip_range_are_never_counted_as_clipped():
    """Whatever their rounding."""
    values, old = torch.rand(2, 1000, generator=torch.Generator().manual_seed(0))
    _, stats = clipped_value_loss(values, old, 3 * old, torch.ones(1000, dtype=torch.bool), 1.0)
    assert stats["clip_fraction"] == 0


def test_a_cliprange_of_0_lets_no_value_move_towards_its_return():
    values, (loss, _) = value_loss_of([3.0], [1.0], [4.0], 0.0)
    assert loss.item() == pytest.approx(4.5)
    assert gradient(loss, values) == [0]


def test_no_cliprange_is_half_the_squared_error():
    values, (loss, stats) = value_loss_of([3.0, -3.0], [0.0, 0.0], [4.0, 4.0], None)
    assert loss.item() == pytest.approx(25)
    assert gradient(loss, values) == pytest.approx([-1, -7])
    assert stats["clip_fraction"] == 0


@pytest.mark.parametrize("rubbish", [NAN, INF])
def test_value_loss_never_sees_what_does_not_count(rubbish):
    values, (loss, stats) = value_loss_of([3.0, rubbish], [0.0, rubbish], [4.0, rubbish], 1.0, mask=[True, False])
    assert loss.item() == pytest.approx(4.5)
    assert gradient(loss, values) == [0, 0]
    assert numbers(stats) == {"clip_fraction": 1}


def test_gradient_flows_into_the_new_values_only():
    values, old_values, returns = (torch.ones(2, requires_grad=True) for _ in range(3))
    loss, stats = clipped_value_loss(values, old_values, returns, tensor([True, True]), 0.2)
    loss.backward()
    assert old_values.grad is None
    assert returns.grad is None
    assert not any(value.requires_grad for value in stats.values())


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_losses_are_sums_so_that_parts_and_padding_change_nothing(seed, padding):
    rng = torch.Generator().manual_seed(seed)
    logprobs, old_logprobs, advantages, values, old_values, returns = torch.randn(6, 4, 6, generator=rng).double()
    mask = torch.rand(4, 6, generator=rng) < 0.7
    weights = torch.rand(4, 6, generator=rng).double()

    def losses(rows, pad=0):
        def part(x):
            return torch.nn.functional.pad(x[rows], (0, pad), value=False if x.dtype == torch.bool else NAN)

        options = {"cliprange_high": 0.3, "dual_clip": 2.0, "weights": part(weights)}
        policy = clipped_policy_loss(part(logprobs), part(old_logprobs), part(advantages), part(mask), 0.2, **options)
        value = clipped_value_loss(part(values), part(old_values), part(returns), part(mask), 0.2)
        return [policy.loss, *policy.stats.values(), value.loss, *value.stats.values()]

    whole = torch.stack(losses(slice(0, 4)))
    torch.testing.assert_close(torch.stack(losses(slice(0, 1))) + torch.stack(losses(slice(1, 4))), whole)
    torch.testing.assert_close(torch.stack(losses(slice(0, 4), pad=padding)), whole)


def test_explained_variance():
    returns, mask = tensor([1.0, 2.0, 3.0, NAN]), tensor([True, True, True, False])
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(returns + 5, returns, mask) == 1  # a constant offset is not variance
    assert explained_variance(tensor([7.0, 7.0, 7.0, 7.0]), returns, mask) == 0
    assert explained_variance(-returns, returns, mask) == -3
    assert not explained_variance(torch.ones(4, requires_grad=True), returns, mask).requires_grad
    assert explained_variance(tensor([2.0, 2.0, 3.0, 0.0]), returns, mask).item() == pytest.approx(2 / 3)


def test_explained_variance_of_constant_returns_is_nan():
    mask = torch.ones(7, dtype=torch.bool)
    assert explained_variance(torch.randn(7), torch.full((7,), 0.1), mask).isnan()
    assert explained_variance(torch.full((7,), 0.1), torch.full((7,), 0.1), mask).isnan()
