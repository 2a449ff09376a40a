"""The estimators against the exact KL, by enumerating a vocabulary of three tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from hf_rlhf.ops.kl import FULL_KL, KL_ESTIMATORS, absolute, k1, k2, k3, kl_estimate

logits = st.lists(st.floats(-4, 4), min_size=3, max_size=3).map(lambda row: tensor(row, dtype=torch.float64))


def expectation(estimator, policy, reference):
    return (policy.exp() * estimator(policy, reference)).sum().item()


def exact_kl(policy, reference):
    return sum(p * (p.log() - q.log()) for p, q in zip(policy.exp(), reference.exp(), strict=True)).item()


@settings(deadline=None, max_examples=50)
@given(logits, logits)
def test_k1_and_k3_are_unbiased(policy, reference):
    policy, reference = policy.log_softmax(-1), reference.log_softmax(-1)
    assert expectation(k1, policy, reference) == pytest.approx(exact_kl(policy, reference), abs=1e-9)
    assert expectation(k3, policy, reference) == pytest.approx(exact_kl(policy, reference), abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(logits, logits)
def test_signs(policy, reference):
    policy, reference = policy.log_softmax(-1), reference.log_softmax(-1)
    assert (k2(policy, reference) >= 0).all()
    assert (k3(policy, reference) >= 0).all()
    assert torch.equal(absolute(policy, reference), k1(policy, reference).abs())
    assert torch.equal(k1(policy, reference), -k1(reference, policy))


def test_k2_is_close_where_the_distributions_are_close_and_biased_where_they_are_not():
    policy = tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    near, far = tensor([0.21, 0.3, 0.49]).double().log(), tensor([0.9, 0.05, 0.05]).double().log()
    assert expectation(k2, policy, near) == pytest.approx(exact_kl(policy, near), rel=0.05)
    assert expectation(k2, policy, far) != pytest.approx(exact_kl(policy, far), rel=0.05)


def test_the_gradient_of_k2_is_that_of_the_kl():
    reference = tensor([0.9, 0.05, 0.05]).log()
    parameters = tensor([0.1, 0.2, 0.3], requires_grad=True)
    policy = parameters.log_softmax(-1)
    (of_kl,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), parameters, retain_graph=True)
    (of_k2,) = torch.autograd.grad((policy.exp().detach() * k2(policy, reference)).sum(), parameters)
    torch.testing.assert_close(of_k2, of_kl)


def test_as_a_reward_only_k1_has_the_gradient_of_the_kl_and_the_symmetric_ones_vanish_near_the_reference():
    """The score-function gradient `E[k grad log p]`, which is all that a number in the reward can give."""
    reference = tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()
    parameters = (reference + 0.01 * tensor([1.0, -2.0, 3.0])).requires_grad_()
    policy = parameters.log_softmax(-1)

    def gradient(objective):
        return torch.autograd.grad(objective.sum(), parameters, retain_graph=True)[0]

    of_kl = gradient(policy.exp() * (policy - reference))
    of_reward = {
        name: gradient(policy.exp().detach() * estimator(policy, reference).detach() * policy)
        for name, estimator in KL_ESTIMATORS.items()
    }
    torch.testing.assert_close(of_reward["k1"], of_kl)
    assert of_reward["k2"].norm() < 0.02 * of_kl.norm()
    assert of_reward["k3"].norm() < 0.02 * of_kl.norm()
    assert of_reward["abs"].norm() < of_kl.norm()


def test_in_the_loss_k1_has_no_gradient_and_k3_that_of_the_other_direction():
    reference = tensor([0.9, 0.05, 0.05]).log()
    parameters = tensor([0.1, 0.2, 0.3], requires_grad=True)
    policy = parameters.log_softmax(-1)

    def of_loss(estimator):
        weighted = policy.exp().detach() * estimator(policy, reference)
        return torch.autograd.grad(weighted.sum(), parameters, retain_graph=True)[0]

    (of_reverse_kl,) = torch.autograd.grad(
        (reference.exp() * (reference - policy)).sum(), parameters, retain_graph=True
    )
    torch.testing.assert_close(of_loss(k1), torch.zeros(3))
    torch.testing.assert_close(of_loss(k3), of_reverse_kl)


def test_by_hand():
    logprobs, reference = tensor([0.5]).log(), tensor([0.25]).log()  # r = 1/2
    assert kl_estimate("k1", logprobs, reference).item() == pytest.approx(0.693147, abs=1e-6)
    assert kl_estimate("k2", logprobs, reference).item() == pytest.approx(0.240227, abs=1e-6)
    assert kl_estimate("k3", logprobs, reference).item() == pytest.approx(0.193147, abs=1e-6)
    assert kl_estimate("abs", reference, logprobs).item() == pytest.approx(0.693147, abs=1e-6)


def test_k3_keeps_its_digits_next_to_zero():
    k3_of_small_step = k3(tensor([1e-5]), tensor([0.0])).item()
    assert k3_of_small_step >= 0
    assert k3(tensor([1e-3]), tensor([0.0])).item() == pytest.approx(5e-7, rel=1e-3)  # exp(x) - 1 - x would be 4 % off


def test_equal_distributions_have_exactly_no_kl():
    logprobs = torch.randn(4, 5)
    for kind in ("k1", "k2", "k3", "abs"):
        assert (kl_estimate(kind, logprobs, logprobs) == 0).all()


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match=r"'k4'. Choose one of 'k1', 'k2', 'k3', 'abs'"):
        kl_estimate("k4", torch.zeros(1), torch.zeros(1))


def test_the_full_kl_is_not_an_estimator():
    assert FULL_KL == "full"
    assert FULL_KL not in KL_ESTIMATORS
