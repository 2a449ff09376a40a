import math

import pytest
import torch
from torch import tensor

from hf_rlhf.ops.preference import bradley_terry_loss, preference_accuracy


def test_loss_by_hand():
    loss = bradley_terry_loss(tensor([1.0, 3.0, 0.0]), tensor([1.0, 1.0, 2.0]))
    assert loss.tolist() == pytest.approx([0.693147, 0.126928, 2.126928], abs=1e-6)


def test_a_margin_asks_for_more():
    chosen, rejected = tensor([3.0, 3.0]), tensor([1.0, 1.0])
    assert bradley_terry_loss(chosen, rejected, tensor([2.0, 0.0])).tolist() == pytest.approx(
        [0.693147, 0.126928], abs=1e-6
    )
    assert bradley_terry_loss(chosen, rejected, 2.0).tolist() == pytest.approx([0.693147] * 2, abs=1e-6)


def test_loss_of_a_hopeless_pair_is_finite_and_pulls_at_full_strength():
    chosen = tensor([-500.0], requires_grad=True)
    loss = bradley_terry_loss(chosen, tensor([500.0]))
    assert loss.item() == 1000
    assert torch.autograd.grad(loss.sum(), chosen)[0].item() == -1


def test_accuracy_counts_a_tie_half_and_does_not_hide_a_nan():
    assert preference_accuracy(tensor([2.0, 1.0, 1.0, 5.0]), tensor([1.0, 2.0, 1.0, 0.0])) == 0.625
    assert preference_accuracy(tensor([2.0, math.nan]), tensor([1.0, 0.0])).isnan()
