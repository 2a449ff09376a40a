"""A pass that begins above the trunk is the whole pass: the same states, log-probabilities, values and gradients."""

from typing import Any

import pytest
import torch
from peft import get_peft_model
from tiny import make_lora, make_model, make_sequences, make_tokenizer, perturb
from transformers import AutoConfig, AutoModelForCausalLM

from hf_rlhf.models.adapters import CRITIC, POLICY, REFERENCE, base_of
from hf_rlhf.models.critics import build_critic
from hf_rlhf.models.fast.attention import PACKED, set_attention, training_attention
from hf_rlhf.models.fast.trunk import CannotEnter, find_trunk
from hf_rlhf.models.lora_targets import in_last_blocks
from hf_rlhf.models.policy import PolicyWithValue, wrap_policy
from hf_rlhf.types import Sequences

ADAPTERS = (POLICY, CRITIC, REFERENCE)
SMALL = {
    "vocab_size": 29,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "qwen2": {name: value for name, value in SMALL.items() if name != "head_dim"},
    "gemma": SMALL,  # scales its embeddings
    "gemma2": SMALL | {"sliding_window": 4},
    "gpt2": {
        "vocab_size": 29,
        "n_positions": 64,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
    },  # positions in the embeddings
    "bloom": {"vocab_size": 29, "hidden_size": 32, "n_layer": 3, "n_head": 4},  # whose blocks return tuples
}


def make_kind(kind):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **KINDS[kind]))
    return perturb(model, scale=0.1)


def with_lora(model, last=1, **settings):
    return wrap_policy(model, in_last_blocks(make_lora(**settings), model, last))


def finished(policy):
    """The policy with noise in all that is trained, no dropout, and its trunk."""
    perturb(policy, only="lora")
    perturb(policy.value_head)
    policy.disable_dropout()
    policy.trunk = find_trunk(base_of(policy.model), ADAPTERS)
    return policy


def scored(policy, sequences, *, states, **options):
    """Return the result of a forward pass, and the gradients of its sum."""
    policy.zero_grad()
    output = policy(sequences, trunk_states=states, entropy=True, reference=True, **options)
    sum(part.pow(2).sum() for part in output if part is not None).backward()
    trained = {name: weight.grad.clone() for name, weight in policy.named_parameters() if weight.requires_grad}
    return output._asdict() | trained


def assert_equal(policy, sequences, **options):
    """Begun above the trunk, a pass is equal to the bit."""
    assert policy.trunk.depth > 0
    states = policy.trunk_states(sequences)
    whole = scored(policy, sequences, states=None, **options)
    entered = scored(policy, sequences, states=states, **options)
    for name, expected in whole.items():
        assert expected is None or torch.equal(entered[name], expected), name
    assert whole["logprobs"].any()


def sequences_with_gaps():
    """Five completions, of which some tokens in the middle do not count, as in dialogues of several turns."""
    sequences = make_sequences()
    sequences.mask[:, 2] = False
    return sequences


@pytest.mark.parametrize("kind", KINDS)
def test_an_architecture_is_entered_in_the_middle(kind):
    fan = {"fan_in_fan_out": True} if kind == "gpt2" else {}
    assert_equal(finished(PolicyWithValue(with_lora(make_kind(kind), **fan))), sequences_with_gaps())


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("recomputes", [True, False])
@pytest.mark.parametrize("critic", ["value_head", "adapter"])
def test_every_role_and_layout(packing, recomputes, critic):
    model = make_model(make_tokenizer(), num_hidden_layers=4)
    start = get_peft_model(model, in_last_blocks(make_lora(), model, 2))
    policy = wrap_policy(perturb(start, only="lora"))  # so that the reference is an adapter
    policy = finished(PolicyWithValue(policy, build_critic(critic, policy)))
    assert policy.trunk.depth == 2
    if recomputes:
        policy.gradient_checkpointing_enable()
        policy.train()
    set_attention(training_attention([model], "cpu", 16, packing=packing, recomputes=recomputes))
    assert (model.config._attn_implementation == PACKED) == packing
    texts = Sequences.from_ids([[1], [2, 3]], [[4, 5, 6], [7]])
    assert_equal(policy, sequences_with_gaps(), full_kl=True, texts=texts)


def test_states_of_another_batch_differ_by_rounding():
    policy = finished(PolicyWithValue(with_lora(make_kind("llama"), 2)))
    sequences = make_sequences()
    alone = [policy.trunk_states(sequences[torch.tensor([b])])[0] for b in range(len(sequences))]
    for one, other in zip(alone, policy.trunk_states(sequences), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    whole = scored(policy, sequences, states=None)
    for name, value in scored(policy, sequences, states=alone).items():
        if value is not None:
            assert (value - whole[name]).norm() <= 1e-5 * whole[name].norm(), name


def test_states_alone_decide():
    """The trunk's blocks do not run, and states that are others give another result."""
    policy = finished(PolicyWithValue(with_lora(make_kind("llama"))))
    sequences, calls = make_sequences(), []
    states = policy.trunk_states(sequences)
    for block in base_of(policy.model).model.layers:
        block.register_forward_hook(lambda *_: calls.append(None))
    expected = policy(sequences, trunk_states=states).logprobs
    assert len(calls) == 1
    other = policy(sequences, trunk_states=[2 * state for state in states]).logprobs
    assert not torch.allclose(expected, other)


def test_an_error_leaves_the_blocks_as_they_were():
    policy = finished(PolicyWithValue(with_lora(make_kind("llama"))))
    sequences = make_sequences()
    expected = policy(sequences).logprobs
    with pytest.raises(RuntimeError):
        policy(sequences, trunk_states=[state[:, :3] for state in policy.trunk_states(sequences)])
    assert torch.equal(policy(sequences).logprobs, expected)


# What the trunk is


def test_nothing_is_left_where_all_is_trained():
    assert find_trunk(base_of(with_lora(make_kind("llama"), 3)), ADAPTERS) is None
    assert find_trunk(make_kind("llama"), ADAPTERS) is None


def test_frozen_adapters_count_where_roles_differ():
    """A reference or critic that was trained on every block, but not a reward model, which reads other tokens."""
    model = with_lora(make_kind("llama"))
    model.add_adapter("reward", make_lora())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert find_trunk(base_of(model), ADAPTERS).depth == 2
    assert find_trunk(base_of(model), (*ADAPTERS, "reward")) is None


@pytest.mark.parametrize("trained", [{"modules_to_save": ["embed_tokens"]}, {"trainable_token_indices": [1, 2]}])
def test_trained_embeddings_leave_none(trained):
    assert find_trunk(base_of(with_lora(make_kind("llama"), **trained)), ADAPTERS) is None


def test_a_trained_head_is_above():
    assert find_trunk(base_of(with_lora(make_kind("llama"), modules_to_save=["lm_head"])), ADAPTERS).depth == 2


def test_full_fine_tuning_of_upper_blocks():
    model: Any = make_kind("llama")
    model.requires_grad_(False)
    for block in model.model.layers[1:]:
        block.requires_grad_(True)
    model.model.norm.requires_grad_(True)
    assert find_trunk(model, ADAPTERS).depth == 1
    model.model.embed_tokens.requires_grad_(True)
    assert find_trunk(model, ADAPTERS) is None


# What cannot be entered


@pytest.mark.parametrize("stale", [True, False])
def test_a_block_that_reads_what_a_lower_one_left(stale):
    model: Any = make_kind("llama")
    left = {}
    model.model.layers[0].register_forward_hook(lambda block, inputs, output: left.update(states=output))
    read = left.get if stale else left.pop
    model.model.layers[2].register_forward_pre_hook(lambda block, inputs: (inputs[0] + read("states"), *inputs[1:]))
    with pytest.raises(CannotEnter):
        find_trunk(base_of(with_lora(model)), ADAPTERS)


def test_blocks_that_run_twice():
    model: Any = make_kind("llama")
    block = model.model.layers[0]
    again = block.forward
    block.forward = lambda states, **kwargs: again(model.model.layers[1](states, **kwargs), **kwargs)
    with pytest.raises(CannotEnter, match="more or less than once"):
        find_trunk(base_of(with_lora(model)), ADAPTERS)
