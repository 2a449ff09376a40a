"""Estimators of the advantage by enumeration of all batches: which leave the expected gradient as it is."""

import itertools

import pytest
import torch
from tiny import make_config

from hf_rlhf.ppo.estimators import ReturnMean, estimate_advantages
from hf_rlhf.ppo.experience import Experience
from hf_rlhf.ppo.gradient_variance import _Sums
from hf_rlhf.types import Sequences

TOKENS = 3  # of two steps: the state of the second is the token of the first


class Table:
    """A policy of two steps over three tokens as a table of logits, with rewards, in double precision."""

    def __init__(self):
        generator = torch.Generator().manual_seed(4)

        def random(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.logits = random(1 + TOKENS, TOKENS).requires_grad_()
        first, then = random(TOKENS) + 2, random(TOKENS, TOKENS) + 1
        self.episodes = list(itertools.product(range(TOKENS), repeat=2))
        self.rewards = torch.stack([torch.stack([first[a], then[a, b]]) for a, b in self.episodes])  # (9, 2)
        self.logprobs = torch.stack([self._of(a, b) for a, b in self.episodes])  # (9, 2)
        self.probabilities = self.logprobs.sum(dim=1).exp().detach()  # (9,)
        tokens = [
            torch.autograd.grad(logprob, self.logits, retain_graph=True)[0] for logprob in self.logprobs.flatten()
        ]
        self.scores = torch.stack(tokens).flatten(1).reshape(9, 2, -1)  # (9, 2, P)
        second = (self.logits[1:].softmax(dim=1) * then).sum(dim=1).detach()  # values of the second states
        self.value = (self.probabilities[:, None] * self.rewards).sum()
        self.exact_values = torch.stack([torch.stack([self.value, second[a]]) for a, _ in self.episodes])
        self.exact_advantages = torch.stack(
            [torch.stack([first[a] + second[a] - self.value, then[a, b] - second[a]]) for a, b in self.episodes]
        )
        self.wrong_values = torch.stack([torch.stack([self.value + 1, 2 * second[a] + 1]) for a, _ in self.episodes])

    def _of(self, a, b):
        return torch.stack([self.logits[0].log_softmax(0)[a], self.logits[1 + a].log_softmax(0)[b]])

    def gradient(self):
        """That of the expected return, by autograd."""
        expected = (self.logprobs.sum(dim=1).exp() * self.rewards.sum(dim=1)).sum()
        return torch.autograd.grad(expected, self.logits, retain_graph=True)[0].flatten()

    def experience(self, rows, values):
        """Return what an iteration with these episodes would know."""
        sequences = Sequences.from_ids([[0]] * len(rows), [[1 + a for a in self.episodes[row]] for row in rows])
        zeros = torch.zeros(len(rows), 2, dtype=torch.float64)
        return Experience(
            sequences, 0.0, scores=zeros[:, 0], scores_per_token=zeros, logprobs=zeros, sampler_logprobs=zeros,
            reference_logprobs=zeros, kl=zeros, values=values[rows], entropy=zeros,
            fitted_advantages=self.exact_advantages[rows], per_token_rewards=self.rewards[rows],
        )  # fmt: skip


def expected_gradient(table, name, config, values):
    """Sum over all batches of two completions of one prompt, by their probability."""
    total = torch.zeros(table.scores.shape[-1], dtype=torch.float64)
    for batch in itertools.product(range(9), repeat=2):
        rows = list(batch)
        advantages = estimate_advantages(name, table.experience(rows, values), config, ReturnMean(50.0, 20.0))
        gradient = (advantages[:, :, None] * table.scores[rows]).sum(dim=(0, 1)) / 2
        total += table.probabilities[rows].prod() * gradient
    return total


@pytest.mark.parametrize(
    ("name", "values", "lam", "scale"),
    [
        ("reinforce", "wrong", 1.0, 1.0),
        ("monte_carlo", "wrong", 1.0, 1.0),
        ("running_mean", "wrong", 1.0, 1.0),
        ("value", "wrong", 0.5, 1.0),
        ("leave_one_out", "wrong", 1.0, 1.0),
        ("group", "wrong", 1.0, 0.5),  # (n - 1) / n of leave_one_out
        ("gae", "wrong", 1.0, 1.0),
        ("gae", "exact", 0.5, 1.0),
        ("dae", "exact", 1.0, 1.0),  # a head that is right
    ],
)
def test_the_expected_gradient_is_that_of_the_expected_return(tmp_path, name, values, lam, scale):
    table, config = Table(), make_config(tmp_path, num_generations=2, gamma=1.0, lam=lam)
    given = table.exact_values if values == "exact" else table.wrong_values
    found = expected_gradient(table, name, config, given)
    torch.testing.assert_close(found, scale * table.gradient())


def test_gae_below_lambda_1_is_biased_by_a_wrong_critic(tmp_path):
    table, config = Table(), make_config(tmp_path, num_generations=2, gamma=1.0, lam=0.5)
    found = expected_gradient(table, "gae", config, table.wrong_values)
    assert (found - table.gradient()).norm() > 0.1 * table.gradient().norm()


def test_the_variance_of_three_gradients_by_hand():
    """(1, 0), (3, 0) and twice (1, 1.5): the mean is (2, 1), and the squares are 1 + 1, 1 + 1 and 4, by 3 - 1."""
    sums = _Sums([torch.zeros(2)])
    sums.add([torch.tensor([1.0, 0.0])], 1.0)
    sums.add([torch.tensor([3.0, 0.0])], 1.0)
    sums.add([torch.tensor([1.0, 1.5])], 2.0)
    assert sums.variance() == pytest.approx(4.0)


def test_the_variance_is_right_on_average_over_all_batches(tmp_path):
    """The expected value of what is measured of two completions is the trace of the covariance of one."""
    table, config = Table(), make_config(tmp_path, num_generations=2, gamma=1.0)
    every = list(range(9))
    advantages = estimate_advantages("monte_carlo", table.experience(every, table.wrong_values), config, ReturnMean())
    gradients = (advantages[:, :, None] * table.scores).sum(dim=1)  # (9, P)
    mean = table.probabilities @ gradients
    trace = table.probabilities @ (gradients - mean).square().sum(dim=1)
    measured = 0.0
    for one, other in itertools.product(range(9), repeat=2):
        sums = _Sums([table.logits.flatten()])
        for row in (one, other):
            sums.add([gradients[row]], 1.0)
        measured += (table.probabilities[one] * table.probabilities[other]).item() * sums.variance()
    assert measured == pytest.approx(trace.item(), rel=1e-5)
