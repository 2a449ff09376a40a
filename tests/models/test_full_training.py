"""Full fine-tuning of the last blocks: what is trained, what the reference copies, and what is refused."""

import copy

import pytest
import torch
from models.fast.test_trunk import KINDS, SMALL, make_kind
from peft import get_peft_model
from tiny import make_lora, make_sequences, perturb, snapshot, trained
from transformers import AutoConfig, AutoModelForCausalLM

from hf_rlhf.errors import InputError
from hf_rlhf.models.critics import build_critic
from hf_rlhf.models.fast.trunk import block_list, find_trunk
from hf_rlhf.models.policy import PolicyWithValue, wrap_policy

NORMS = ("model.norm.", "transformer.ln_f.", "model.decoder.final_layer_norm.")


def make_opt():
    """Whose states are projected behind the last block."""
    sizes = {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 16,
    }
    config = AutoConfig.for_model("opt", vocab_size=29, max_position_embeddings=64, pad_token_id=0, **sizes)
    return AutoModelForCausalLM.from_config(config)


def make(kind):
    if kind == "opt":
        return make_opt()
    if kind == "tied llama":
        return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMALL, tie_word_embeddings=True))
    return make_kind(kind)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", [*KINDS, "tied llama", "opt"])
def test_the_last_blocks_are_trained_and_what_runs_after_them(kind, count):
    model = make(kind)
    names = [name for name, _ in model.named_parameters()]
    wrap_policy(model, num_layers_unfrozen=count)
    found = block_list(model)
    assert found is not None
    upper = tuple(f"{found[0]}.{number}." for number in range(3 - count, 3))
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (kind not in ("llama", "qwen2"))
    after = (*NORMS, "model.decoder.project_out.", *([] if tied else ["lm_head."]))
    assert set(trained(model)) == {name for name in names if name.startswith((*upper, *after))}
    assert any(name.startswith(NORMS) for name in trained(model))
    trunk = find_trunk(model, ())
    assert (0 if trunk is None else trunk.depth) == 3 - count


@pytest.mark.parametrize("kind", ["llama", "tied llama"])
def test_the_reference_copies_what_is_trained_alone(kind):
    policy = PolicyWithValue(wrap_policy(perturb(make(kind)), num_layers_unfrozen=1))
    of_policy, own = snapshot(policy.model), trained(policy.model)
    others = {id(weight) for weight in policy.model.parameters()}
    copied = {name for name, weight in policy.reference_model.named_parameters() if id(weight) not in others}
    assert copied == set(own)
    stored = sum(weight.numel() for weight in {*policy.model.parameters(), *policy.reference_model.parameters()})
    assert stored == sum(map(torch.Tensor.numel, [*of_policy.values(), *own.values()]))
    assert not trained(policy.reference_model)
    shared = policy.weights_in_reference()
    assert len(shared) == len(of_policy) - len(own)
    assert policy.to(torch.float64).weights_in_reference() == shared  # as after a move to another device


def test_every_weight_is_copied_where_all_are_trained_or_fsdp_cuts_them():
    for policy in (
        PolicyWithValue(wrap_policy(make("llama"))),
        PolicyWithValue(wrap_policy(make("llama"), num_layers_unfrozen=1), copy_frozen=True),
    ):
        assert not policy.weights_in_reference()


@pytest.mark.parametrize("critic", ["value_head", "model"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_pass_above_the_trunk_is_the_whole_pass_to_the_bit(kind, critic):
    model, sequences = wrap_policy(make(kind), num_layers_unfrozen=2), make_sequences()
    value_model = None
    if critic == "model":
        from invariance.runs import classifier

        value_model = classifier()
    policy = PolicyWithValue(model, build_critic(critic, model, value_model=value_model, num_layers_unfrozen=1))
    policy.disable_dropout()
    policy.trunk = find_trunk(model, ())
    assert policy.trunk.depth == 1
    start = policy(sequences, reference=True, trunk_states=policy.trunk_states(sequences))
    assert torch.equal(start.logprobs, start.reference_logprobs)
    reference = start.reference_logprobs
    with torch.no_grad():
        for weight in policy.policy_parameters():
            weight += 0.1 * torch.randn_like(weight)
    results = []
    for states in (policy.trunk_states(sequences), None):
        policy.zero_grad()
        output = policy(sequences, trunk_states=states, entropy=True, reference=True, full_kl=True)
        assert torch.equal(output.reference_logprobs, reference)
        assert output.kl.sum() > 0.1
        sum(part.pow(2).sum() for part in output if part is not None).backward()
        gradients = {name: weight.grad for name, weight in policy.named_parameters() if weight.requires_grad}
        results.append(output._asdict() | gradients)
    for name, entered in results[0].items():
        assert entered is None or torch.equal(entered, results[1][name]), name


def test_a_refreshed_reference_is_the_policy():
    policy = PolicyWithValue(wrap_policy(make("llama"), num_layers_unfrozen=1))
    shared = policy.weights_in_reference()
    with torch.no_grad():
        for weight in policy.policy_parameters():
            weight += 1
    policy.refresh_reference()
    now = snapshot(policy.model)
    assert all(torch.equal(weight, now[name]) for name, weight in snapshot(policy.reference_model).items())
    assert policy.weights_in_reference() == shared


@pytest.mark.parametrize("frozen", ["model.layers.0.", "model."])
def test_a_model_that_came_frozen(frozen):
    """Below its last block it stays so; a model whose last block is frozen is trained whole."""
    model = make("llama")
    for name, weight in model.named_parameters():
        weight.requires_grad_(not name.startswith(frozen))
    came, whole = set(trained(model)), len(snapshot(model))
    assert len(trained(wrap_policy(copy.deepcopy(model)))) == (len(came) if "layers" in frozen else whole)
    assert len(trained(wrap_policy(model, num_layers_unfrozen=1))) == 11  # 9 of a block, the norm and the head


# What is refused


def test_more_blocks_than_there_are():
    with pytest.raises(InputError, match=r"num_layers_unfrozen=4 is invalid: the model has 3 blocks. Set it to 1 to 3"):
        wrap_policy(make("llama"), num_layers_unfrozen=4)


def test_blocks_that_are_not_one_list(monkeypatch):
    monkeypatch.setattr("hf_rlhf.models.fast.trunk.block_list", lambda model: None)
    with pytest.raises(InputError, match=r"\(LlamaForCausalLM\) has no list of blocks. Omit it"):
        wrap_policy(make("llama"), num_layers_unfrozen=1)


@pytest.mark.parametrize("wrapped", [True, False])
def test_lora(wrapped):
    model, config = make("llama"), make_lora()
    given = (get_peft_model(model, config), None) if wrapped else (model, config)
    with pytest.raises(InputError, match=r"num_layers_unfrozen=1 is invalid with LoRA.*set lora_layers=1"):
        wrap_policy(*given, num_layers_unfrozen=1)
