import os
import platform
import subprocess
import sys
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hf_rlhf.ops.kl import k1, k2, k3
from hf_rlhf.ops.logprobs import ChosenLogprob, chunk_rows, token_kl, token_logprobs

N, H, V = 11, 6, 17


def inputs(seed=0, tokens=N):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, H, generator=generator)
    weight = torch.randn(V, H, generator=generator)
    targets = torch.randint(0, V, (tokens,), generator=generator)
    return hidden, weight, targets


def plain(hidden, weight, targets, temperature=1.0):
    logprobs = (hidden @ weight.T / temperature).log_softmax(dim=-1)
    return logprobs.gather(1, targets[:, None]).squeeze(1), -(logprobs.exp() * logprobs).sum(dim=1)


@settings(deadline=None, max_examples=25)
@given(chunk_size=st.integers(1, N + 3), temperature=st.floats(0.3, 3.0), seed=st.integers(0, 100))
def test_values_and_gradients_are_those_of_log_softmax_at_any_chunk_size(chunk_size, temperature, seed):
    gradients, results = [], []
    for chunked in (True, False):
        hidden, weight, targets = inputs(seed)
        hidden.requires_grad_(), weight.requires_grad_()
        if chunked:
            result = token_logprobs(
                hidden,
                targets,
                lambda states, weight=weight: states @ weight.T,
                temperature=temperature,
                entropy=True,
                chunk_size=chunk_size,
            )
        else:
            result = plain(hidden, weight, targets, temperature)
        (result[0] * torch.arange(N)).sum().backward()
        gradients.append((hidden.grad, weight.grad))
        results.append(result)
    for chunked, whole in zip(results[0] + gradients[0], results[1] + gradients[1], strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-4)


def test_the_entropy_has_the_gradient_of_its_formula():
    gradients = []
    for chunked in (True, False):
        hidden, weight, targets = inputs()
        hidden.requires_grad_()
        if chunked:
            entropy = token_logprobs(hidden, targets, lambda x, w=weight: x @ w.T, entropy=True, chunk_size=4).entropy
        else:
            entropy = plain(hidden, weight, targets)[1]
        entropy.sum().backward()
        gradients.append(hidden.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_a_support_of_two_tokens_is_a_softmax_of_two_tokens():
    logits = torch.tensor([[1.0, 50.0, 3.0, 0.0], [2.0, 2.0, 2.0, 9.0]])
    support = torch.tensor([[0, 2, -1], [0, 1, 2]])
    scored = token_logprobs(logits, torch.tensor([0, 1]), lambda x: x, temperature=2.0, support=support, entropy=True)
    p = 1 / (1 + torch.e)  # logits 1 and 3 at temperature 2 are one nat apart
    first_entropy = -(p * torch.tensor(p).log() + (1 - p) * torch.tensor(1 - p).log())
    torch.testing.assert_close(scored.logprobs, torch.tensor([p, 1 / 3]).log())
    torch.testing.assert_close(scored.entropy, torch.stack([first_entropy, torch.tensor(3.0).log()]))


def test_a_support_of_one_token_leaves_no_choice():
    hidden, weight, targets = inputs()
    scored = token_logprobs(hidden, targets, lambda x: x @ weight.T, support=targets[:, None], entropy=True)
    assert scored.logprobs.abs().max() < 1e-6
    assert scored.entropy.abs().max() < 1e-5


def test_supports_of_different_width_give_the_same_in_any_chunk():
    hidden, weight, targets = inputs()
    support = torch.full((N, 5), -1)
    for row in range(N):
        others = [token for token in range(V) if token != targets[row]][: row % 5]
        support[row, : len(others) + 1] = torch.tensor([int(targets[row]), *others])

    def score(chunk_size):
        return token_logprobs(
            hidden, targets, lambda x: x @ weight.T, support=support, entropy=True, chunk_size=chunk_size
        )

    for part, whole in zip(score(2), score(N), strict=True):
        torch.testing.assert_close(part, whole)


@pytest.mark.parametrize("chunk_size", [1, N])
def test_beside_tokens_with_a_support_those_without_one_have_the_whole_vocabulary(chunk_size):
    hidden, weight, targets = inputs()
    whole, entropy = plain(hidden, weight, targets)
    support = [None if n % 2 else targets[n : n + 1].int() for n in range(N)]
    scores = token_logprobs(
        hidden, targets, lambda x: x @ weight.T, support=support, entropy=True, chunk_size=chunk_size
    )
    torch.testing.assert_close(scores.logprobs[1::2], whole[1::2])
    torch.testing.assert_close(scores.entropy[1::2], entropy[1::2])
    assert not scores.logprobs[::2].any()
    kl = token_kl(
        hidden, lambda x: x @ weight.T, -hidden, lambda x: x @ weight.T, support=support, chunk_size=chunk_size
    )
    exact = token_kl(hidden, lambda x: x @ weight.T, -hidden, lambda x: x @ weight.T)
    torch.testing.assert_close(kl[1::2], exact[1::2])
    assert not kl[::2].any()


def test_logprobs_are_fp32_whatever_the_head_gives():
    hidden, weight, targets = inputs()
    scored = token_logprobs(hidden, targets, lambda x: (x @ weight.T).bfloat16())
    assert scored.logprobs.dtype == torch.float32
    assert (scored.logprobs.exp() <= 1).all()


def test_no_row_of_logits_survives_its_chunk():
    """Nothing kept for the backward pass has V columns, and the head never sees more rows than a chunk."""
    hidden, _, targets = inputs()
    hidden.requires_grad_()
    head = nn.Linear(H, V, bias=False)
    rows, saved = [], []

    def recording(states):
        rows.append(len(states))
        return head(states)

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.shape) or tensor, lambda x: x):
        scored = token_logprobs(hidden, targets, recording, entropy=True, chunk_size=3)
    assert rows == [3, 3, 3, 2]
    assert [shape for shape in saved if len(shape) == 2 and shape[-1] == V] == []
    scored.logprobs.sum().backward()
    assert sorted(rows[4:]) == [2, 3, 3, 3]  # once more each in the backward pass


def test_the_chunk_follows_from_the_vocabulary(monkeypatch):
    monkeypatch.setattr("hf_rlhf.ops.logprobs.CHUNK_ELEMENTS", 4 * V)
    hidden, weight, targets = inputs()
    rows = []
    token_logprobs(hidden, targets, lambda x: (rows.append(len(x)), x @ weight.T)[1], vocab_size=V)
    assert rows == [4, 4, 3]


def test_a_chunk_fits_a_processors_cache_but_is_worth_reading_the_head_for():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert chunk_rows(2**14, gpu) == 2**10
    assert chunk_rows(2**14, cpu) == 2**9
    assert chunk_rows(2**18, cpu) == chunk_rows(2**18, gpu) == 64
    assert chunk_rows(2**18, cpu, models=2) == 32


@pytest.mark.parametrize("vocab_size", [1_000, 32_000, 49_152, 151_936, 262_144])
def test_a_chunk_in_fp32_is_not_smaller_than_what_glibc_keeps_on_its_heap(vocab_size):
    assert 4 * vocab_size * chunk_rows(vocab_size, torch.device("cpu")) >= 32 * 2**20


LONG_PASS = """
import os
import torch
from hf_rlhf.ops.logprobs import token_logprobs

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

hidden, targets = torch.randn(2048, 8), torch.zeros(2048, dtype=torch.long)
head = torch.nn.Linear(8, 49_152)
with torch.no_grad():
    token_logprobs(hidden[:8], targets[:8], head, vocab_size=49_152)
    before = resident()
    scored = token_logprobs(hidden, targets, head, entropy=True, vocab_size=49_152)
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")
def test_a_process_holds_no_logits_after_a_pass_in_chunks():
    """It held 0.8 GB of 2,048 tokens while a chunk was a little smaller than 32 MiB."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", LONG_PASS], capture_output=True, text=True, env=environment, check=True
    )
    assert float(done.stdout.split()[-1]) < 100e6


@pytest.mark.parametrize("with_support", [False, True])
def test_zero_tokens_score_nothing_and_take_gradients(with_support):
    hidden, weight, targets = inputs(tokens=0)
    hidden.requires_grad_()
    support = torch.empty(0, 3, dtype=torch.long) if with_support else None
    scored = token_logprobs(hidden, targets, lambda x: x @ weight.T, support=support, entropy=True)
    assert scored.logprobs.shape == scored.entropy.shape == (0,)
    scored.logprobs.sum().backward()
    assert hidden.grad.shape == (0, H)


# The exact KL


def two_models(seed=0, tokens=N):
    """Hidden states and heads of a policy and of a reference, whose hidden size is another."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((tokens, H), (V, H), (tokens, H + 2), (V, H + 2))
    return [torch.randn(size, generator=generator) for size in sizes]


def random_support(seed=0):
    """Between one and five allowed tokens a row, padded with -1."""
    generator = torch.Generator().manual_seed(seed)
    support = torch.full((N, 5), -1)
    for row in range(N):
        width = row % 5 + 1
        support[row, :width] = torch.randperm(V, generator=generator)[:width]
    return support


def direct_kl(hidden, weight, reference_hidden, reference_weight, temperature, support):
    """Row by row, from the definition."""
    result = []
    for row in range(N):
        ids = torch.arange(V) if support is None else support[row][support[row] >= 0]
        p = (hidden[row] @ weight.T / temperature)[ids].softmax(0)
        q = (reference_hidden[row] @ reference_weight.T / temperature)[ids].softmax(0)
        result.append(sum(p[v] * (p[v].log() - q[v].log()) for v in range(len(ids))))
    return torch.stack(result)


@pytest.mark.parametrize("with_support", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 2, N, None])
def test_kl_and_its_gradients_are_those_of_the_definition_at_any_chunk_size(chunk_size, with_support):
    support = random_support() if with_support else None
    results, gradients = [], []
    for chunked in (True, False):
        hidden, weight, reference_hidden, reference_weight = tensors = [x.requires_grad_() for x in two_models()]
        if chunked:
            kl = token_kl(
                hidden,
                lambda x, w=weight: x @ w.T,
                reference_hidden,
                lambda x, w=reference_weight: x @ w.T,
                temperature=0.7,
                support=support,
                chunk_size=chunk_size,
            )
        else:
            kl = direct_kl(*tensors, 0.7, support)
        (kl * torch.arange(N)).sum().backward()
        results.append(kl)
        gradients.append((hidden.grad, weight.grad))
        if chunked:
            assert reference_hidden.grad is None
            assert reference_weight.grad is None
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def identity(logits):
    return logits


def test_kl_by_hand():
    # p = (1/2, 1/2), q = (1/4, 3/4):  KL = 1/2 log 2 + 1/2 log(2/3) = 1/2 log(4/3)
    logits, reference = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 3.0]]).log()
    assert token_kl(logits, identity, reference, identity).item() == pytest.approx(0.143841, abs=1e-6)
    # At temperature 1/2, q = (1/10, 9/10):  KL = 1/2 log 5 + 1/2 log(5/9)
    assert token_kl(logits, identity, reference, identity, temperature=0.5).item() == pytest.approx(0.510826, abs=1e-6)


def test_equal_models_have_exactly_no_kl_and_no_gradient():
    hidden, weight, *_ = two_models()
    hidden.requires_grad_()
    kl = token_kl(hidden, lambda x: x @ weight.T, hidden.detach(), lambda x: x @ weight.T)
    assert (kl == 0).all()
    kl.sum().backward()
    assert hidden.grad.abs().max() < 1e-6


def logits_of(size):
    return st.lists(st.floats(-4, 4), min_size=size, max_size=size).map(torch.tensor)


@settings(deadline=None, max_examples=50)
@given(logits_of(4), logits_of(4))
def test_the_estimators_average_to_the_kl_and_k2_to_its_gradient(logits, reference):
    """Over all four tokens, each as often as the policy draws it. k1 averages to no gradient at all: it is no loss."""
    logits, reference = logits[None].requires_grad_(), reference[None]
    kl = token_kl(logits, identity, reference, identity)
    (of_kl,) = torch.autograd.grad(kl, logits)

    sampled = torch.arange(4)
    logprobs = token_logprobs(logits.expand(4, 4), sampled, identity).logprobs
    reference_logprobs = token_logprobs(reference.expand(4, 4), sampled, identity).logprobs
    frequency = logprobs.exp().detach()
    averages, gradients = {}, {}
    for estimator in (k1, k2, k3):
        average = (frequency * estimator(logprobs, reference_logprobs)).sum()
        (gradient,) = torch.autograd.grad(average, logits, retain_graph=True)
        averages[estimator], gradients[estimator] = average, gradient
    torch.testing.assert_close(averages[k1], kl[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(averages[k3], kl[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[k2], of_kl, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[k1], torch.zeros_like(of_kl), rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(logits_of(6), logits_of(6))
def test_kl_is_never_negative_but_for_rounding(logits, reference):
    assert token_kl(logits[None], identity, reference[None], identity).item() >= -1e-6


@pytest.mark.parametrize("forbidden_to_both", [True, False])
def test_a_token_that_is_never_drawn_adds_nothing_and_has_no_gradient(forbidden_to_both):
    inf = float("inf")
    logits = torch.tensor([[0.0, 0.0, -inf], [0.0, 0.0, 0.0]], requires_grad=True)
    reference = torch.tensor([[0.0, 1.0, -inf if forbidden_to_both else 0.0], [0.0, 1.0, 2.0]])
    kl = token_kl(logits, identity, reference, identity, chunk_size=1)
    plain = logits.detach()[:1, :2].clone().requires_grad_()
    expected = (plain.softmax(1) * (plain.log_softmax(1) - reference[:1].log_softmax(1)[:, :2])).sum()
    assert kl[0].item() == pytest.approx(expected.item(), abs=1e-6)
    kl.sum().backward()
    expected.backward()
    assert logits.grad.isfinite().all()
    torch.testing.assert_close(logits.grad[0], torch.cat([plain.grad[0], torch.zeros(1)]))


def test_a_token_that_only_the_policy_draws_is_an_infinite_kl():
    reference = torch.tensor([[0.0, -float("inf")]])
    assert token_kl(torch.zeros(1, 2), identity, reference, identity).item() == float("inf")


def test_probabilities_too_small_for_fp32_are_no_obstacle():
    logits = torch.tensor([[0.0, -500.0]], requires_grad=True)
    kl = token_kl(logits, identity, torch.tensor([[-500.0, 0.0]]), identity)
    assert kl.item() == 500
    kl.backward()
    assert logits.grad.isfinite().all()


def test_no_row_of_logits_survives_the_kl_of_its_chunk():
    hidden, weight, reference_hidden, reference_weight = two_models()
    hidden.requires_grad_(), weight.requires_grad_()
    rows, saved = [], []

    def recording(states):
        rows.append(len(states))
        return states @ weight.T

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.shape) or tensor, lambda x: x):
        kl = token_kl(hidden, recording, reference_hidden, lambda x: x @ reference_weight.T, chunk_size=3)
    assert rows == [3, 3, 3, 2]
    assert [shape for shape in saved if len(shape) == 2 and shape[-1] == V] == []
    kl.sum().backward()
    assert sorted(rows[4:]) == [2, 3, 3, 3]


def test_the_logits_of_both_models_fit_into_a_chunk(monkeypatch):
    monkeypatch.setattr("hf_rlhf.ops.logprobs.CHUNK_ELEMENTS", 8 * V)
    hidden, weight, reference_hidden, reference_weight = two_models()
    rows = []
    reference_head = lambda x: (rows.append(len(x)), x @ reference_weight.T)[1]  # noqa: E731
    token_kl(hidden, lambda x: x @ weight.T, reference_hidden, reference_head, vocab_size=V)
    assert rows == [4, 4, 3]


def test_kl_is_fp32_whatever_the_heads_give():
    hidden, weight, reference_hidden, reference_weight = two_models()
    kl = token_kl(
        hidden, lambda x: (x @ weight.T).bfloat16(), reference_hidden, lambda x: (x @ reference_weight.T).bfloat16()
    )
    assert kl.dtype == torch.float32


@pytest.mark.parametrize("with_support", [False, True])
def test_zero_tokens_have_no_kl_and_take_gradients(with_support):
    hidden, weight, reference_hidden, reference_weight = two_models(tokens=0)
    hidden.requires_grad_()
    support = torch.empty(0, 3, dtype=torch.long) if with_support else None
    heads = (lambda x: x @ weight.T), (lambda x: x @ reference_weight.T)
    kl = token_kl(hidden, heads[0], reference_hidden, heads[1], support=support)
    assert kl.shape == (0,)
    kl.sum().backward()
    assert hidden.grad.shape == (0, H)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_lean_backward_pass_is_autograds(dtype, temperature):
    logits = torch.randn(6, 11).to(dtype).requires_grad_(True)
    targets, weights = torch.randint(11, (6,)), torch.randn(6)
    (ChosenLogprob.apply(logits, targets, temperature) * weights).sum().backward()
    lean, logits.grad = logits.grad, None
    ((logits.float() / temperature).log_softmax(dim=1)[range(6), targets] * weights).sum().backward()
    torch.testing.assert_close(lean, logits.grad, rtol=1e-5 if dtype == torch.float32 else 0.02, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_asking_for_the_entropy_changes_no_bit_of_the_log_probabilities(temperature):
    hidden, weight, targets = torch.randn(9, 8), torch.randn(50, 8), torch.randint(50, (9,))
    score = partial(token_logprobs, hidden, targets, lambda states: states @ weight.T, temperature=temperature)
    assert torch.equal(score(entropy=True).logprobs, score(entropy=False).logprobs)
