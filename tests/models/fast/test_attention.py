"""Attention without padding: the same states, gradients and learning as with it."""

from typing import Any

import pytest
import torch
from tiny import make_model, make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from hf_rlhf.models.backbone import states_at
from hf_rlhf.models.fast import attention as attention_of_training
from hf_rlhf.models.fast.attention import (
    FUSED,
    PACKED,
    attention,
    set_attention,
    training_attention,
)
from hf_rlhf.models.load import EMBEDDED_MODEL, load_causal_lm

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


ALIKE = [30, 28, 31]


def small_model(kind: str, **settings):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SMALL, **settings})
    return AutoModelForCausalLM.from_config(config, attn_implementation=FUSED).eval()


def batch(lengths):
    ids = torch.randint(1, 64, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return ids, real, *real.nonzero(as_tuple=True)


def kinds_of(model, longest=64, **options):
    return training_attention([model], "cpu", longest, **{"packing": True, "recomputes": False, **options})


@pytest.mark.parametrize(
    "lengths", [[7, 3, 12], [5], [40, 200, 9], ALIKE, [4] * 130], ids=lambda lengths: f"{len(lengths)}-{lengths[0]}"
)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        ("llama", {"num_key_value_heads": 4}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 16}),
        ("mistral", {"sliding_window": 4}),
        ("gpt_neox", {}),
        ("phi3", {"pad_token_id": 0}),
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}),  # positions it learned
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_states_and_gradients_are_those_of_a_padded_batch(kind, settings, lengths):
    model = small_model(kind, **settings)
    assert kinds_of(model) == {model: PACKED}
    places = batch(lengths)
    padded = states_at(model, *places)
    padded.pow(3).sum().backward()  # not the square, which the last norm makes constant
    wanted = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()

    set_attention({model: PACKED})
    packed = states_at(model, *places)
    packed.pow(3).sum().backward()
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    largest = max(gradient.abs().max().item() for gradient in wanted.values())
    for name, gradient in wanted.items():
        found = dict(model.named_parameters())[name].grad
        torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gemma2", {"head_dim": 8}),  # soft caps
        ("mamba", {"state_size": 4}),  # states that run on
        ("phimoe", {"sliding_window": 8, "num_local_experts": 2}),  # a window in the mask alone
        ("bloom", {"n_head": 4}),  # biases instead of positions
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_models_whose_code_needs_the_padding_keep_it(kind, settings):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SMALL, **settings})
    model = AutoModelForCausalLM.from_config(config).eval()
    before = getattr(model.config, "_attn_implementation", None)
    assert PACKED not in kinds_of(model).values()
    assert getattr(model.config, "_attn_implementation", None) == before


def test_what_a_run_may_choose():
    model = make_model(make_tokenizer())
    model.set_attn_implementation(FUSED)
    assert kinds_of(model, packing=False) == {model: "eager"}
    assert kinds_of(model, packing=False, longest=129) == {}
    assert kinds_of(model, packing=False, recomputes=True) == {}
    assert kinds_of(model, recomputes=True) == {model: PACKED}
    assert training_attention([model], "cuda", 64, packing=False, recomputes=False) == {}
    model.set_attn_implementation("eager")  # what the user chose stays
    assert kinds_of(model) == {}


@pytest.mark.parametrize("length", [6, 30])
def test_a_neighbour_is_not_seen(length):
    model = small_model("llama")
    set_attention({model: PACKED} if kinds_of(model) else {})
    ids, real, rows, columns = batch([length, length])
    one = states_at(model, ids, real, rows, columns)
    ids[0] = ids[0].flip(0)
    other = states_at(model, ids, real, rows, columns)
    assert torch.equal(one[length:], other[length:])
    assert not torch.equal(one[:length], other[:length])


@pytest.mark.parametrize(("lengths", "calls"), [(ALIKE, 1), ([90, 20, 9], 4)], ids=str)
def test_sequences_alike_are_attended_to_at_once(monkeypatch, lengths, calls):
    model, seen = small_model("llama", num_hidden_layers=1), []
    set_attention(kinds_of(model))
    plain = attention_of_training._plain
    monkeypatch.setattr(attention_of_training, "_plain", lambda *args: seen.append(None) or plain(*args))
    states_at(model, *batch(lengths))
    assert len(seen) == calls


def test_rows_have_few_widths():
    """Each new one costs a CPU time and memory, which it does not give back."""
    model, widths = small_model("llama"), set()
    set_attention(kinds_of(model))
    model.model.embed_tokens.register_forward_hook(lambda module, inputs, output: widths.add(output.shape[1]))
    for length in range(130, 160):
        states_at(model, *batch([60, length]))
    assert widths == {192, 208, 224}


@pytest.mark.parametrize("lengths", [ALIKE, [60, 22, 5]], ids=str)
def test_the_embedded_model_needs_no_padding_in_bf16(lengths):
    """Whose states differ by percents between torch's attention and the plain one."""
    model: Any = load_causal_lm(EMBEDDED_MODEL, dtype="bfloat16").eval()
    assert kinds_of(model) == {model: PACKED}
    places = batch(lengths)
    with torch.no_grad():
        with attention(model, "eager"):
            padded = states_at(model, *places)
        with attention(model, PACKED):
            packed = states_at(model, *places)
    assert (packed - padded).float().norm() <= 0.02 * padded.float().norm()


def test_sampling_is_what_it_was():
    model = small_model("llama")
    ids = torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])
    options = {"attention_mask": (ids > 0).long(), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    wanted = model.generate(ids, **options)
    set_attention(kinds_of(model))
    assert torch.equal(model.generate(ids, **options), wanted)


def test_recomputed_activations_give_the_same_gradients():
    model = small_model("llama").train()
    set_attention(kinds_of(model, recomputes=True))
    places = batch([7, 3, 12])
    states_at(model, *places).pow(3).sum().backward()
    wanted = model.model.layers[0].mlp.up_proj.weight.grad.clone()
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    states_at(model, *places).pow(3).sum().backward()
    torch.testing.assert_close(model.model.layers[0].mlp.up_proj.weight.grad, wanted, rtol=1e-6, atol=1e-8)
