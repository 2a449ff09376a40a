import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hf_rlhf.ops.logprobs import token_logprobs

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


@pytest.mark.parametrize("with_support", [False, True])
def test_zero_tokens_score_nothing_and_take_gradients(with_support):
    hidden, weight, targets = inputs(tokens=0)
    hidden.requires_grad_()
    support = torch.empty(0, 3, dtype=torch.long) if with_support else None
    scored = token_logprobs(hidden, targets, lambda x: x @ weight.T, support=support, entropy=True)
    assert scored.logprobs.shape == scored.entropy.shape == (0,)
    scored.logprobs.sum().backward()
    assert hidden.grad.shape == (0, H)
