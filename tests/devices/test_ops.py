"""The maths computes where its tensors are, and makes nothing on another device."""

import pytest
import torch
from devices.pretended import ACCELERATOR, pretended_accelerator
from torch import nn
from torch.utils._pytree import tree_leaves

from hf_rlhf import ops
from hf_rlhf.ops.logprobs import token_kl, token_logprobs
from hf_rlhf.ops.losses import explained_variance
from hf_rlhf.ops.masked import combine, masked_moments
from hf_rlhf.ops.padding import lengths_to_mask, pad_sequences

SUPPORT = [torch.tensor([0, 2, 4], dtype=torch.int), None, torch.tensor([4], dtype=torch.int)] * 4
HEAD = nn.Linear(4, 5, bias=False)

# Of x and y, numbers (3, 4); mask, (3, 4); ids, (12,) below 5; states, (12, 4)
FUNCTIONS = {
    "gae": lambda x, y, mask, ids, states: ops.gae(x, y, mask, 0.9, 0.8),
    "gae with a bootstrap": lambda x, y, mask, ids, states: ops.gae(x, y, mask, 0.9, 0.8, bootstrap=x[:, 0]),
    "monte_carlo_returns": lambda x, y, mask, ids, states: ops.monte_carlo_returns(x, mask, 0.9),
    "per_token_rewards": lambda x, y, mask, ids, states: ops.per_token_rewards(x[:, 0], y, mask, 0.1),
    "whiten": lambda x, y, mask, ids, states: ops.whiten(x, mask),
    "combine": lambda x, y, mask, ids, states: combine(masked_moments(x, mask), masked_moments(y, mask)),
    "explained_variance": lambda x, y, mask, ids, states: explained_variance(x, y, mask),
    "policy loss": lambda x, y, mask, ids, states: ops.clipped_policy_loss(x, y, x, mask, 0.2, dual_clip=2.0),
    "value loss": lambda x, y, mask, ids, states: ops.clipped_value_loss(x, y, x + y, mask, 0.2),
    "kl": lambda x, y, mask, ids, states: [ops.kl_estimate(kind, x, y) for kind in ("k1", "k2", "k3", "abs")],
    "logprobs": lambda x, y, mask, ids, states: token_logprobs(states, ids, head_at(states), entropy=True),
    "logprobs of some": lambda x, y, mask, ids, states: token_logprobs(
        states, ids, head_at(states), entropy=True, support=SUPPORT, chunk_size=5
    ),
    "logprobs of none": lambda x, y, mask, ids, states: token_logprobs(
        states[:0], ids[:0], head_at(states), support=[]
    ),
    "full KL": lambda x, y, mask, ids, states: token_kl(states, head_at(states), 2 * states, head_at(states)),
    "full KL of some": lambda x, y, mask, ids, states: token_kl(
        states, head_at(states), 2 * states, head_at(states), support=SUPPORT
    ),
    "padding": lambda x, y, mask, ids, states: pad_sequences([ids, ids[:3]], 0),
    "lengths": lambda x, y, mask, ids, states: lengths_to_mask(ids, 5),
}


def head_at(states):
    weight = HEAD.weight.detach().to(states.device)
    return lambda hidden: hidden @ weight.T


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_are_there_and_the_same(name):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator)
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    ids, states = torch.tensor([0, 1, 4] * 4), torch.randn(12, 4, generator=generator)
    given = x, y, mask, ids, states
    expected = tree_leaves(FUNCTIONS[name](*given))
    with pretended_accelerator():
        found = tree_leaves(FUNCTIONS[name](*(tensor.to("cuda") for tensor in given)))
        assert {tensor.device for tensor in found if tensor is not None} == {ACCELERATOR}
    torch.testing.assert_close(found, expected)
