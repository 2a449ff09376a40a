"""The fused LoRA layer gives what PEFT's own gives, and leaves to PEFT what it does not know."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import nn

from hf_rlhf.models.fast.fused_lora import FusedLoraLinear, fuse_lora


def make_pair(bias=True, dtype=torch.float64, **config):
    """Two equal models of two LoRA layers with a SiLU between them, PEFT's and ours."""
    torch.manual_seed(0)
    layers = {"up": nn.Linear(12, 20, bias=bias), "act": nn.SiLU(), "down": nn.Linear(20, 8, bias=bias)}
    base = nn.Sequential(*layers.values()).to(dtype)
    plain = get_peft_model(base, LoraConfig(r=4, lora_alpha=6, target_modules=["0", "2"], **config))
    plain = plain.double() if dtype == torch.float64 else plain
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    fused = copy.deepcopy(plain)
    fuse_lora(fused)
    assert sum(type(module) is FusedLoraLinear for module in fused.modules()) == 2
    return plain, fused


def outcome(model, x):
    """The output, the gradient of the input and of every trained parameter."""
    x = x.clone().requires_grad_(True)
    y = model(x)
    y.square().sum().backward()
    return [y, x.grad, *(parameter.grad for parameter in model.parameters() if parameter.requires_grad)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 12), (7, 12), (2, 0, 12)])
def test_output_and_gradients_are_those_of_peft(shape, bias):
    plain, fused = make_pair(bias)
    x = torch.randn(shape, dtype=torch.float64)
    for expected, actual in zip(outcome(plain, x), outcome(fused, x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rows", [1, 64, 65])
def test_without_gradients_few_rows_and_many_give_the_same(rows):
    plain, fused = make_pair()
    x = torch.randn(rows, 12, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rows", [8, 100])
def test_under_autocast_a_bf16_base_is_no_less_exact_than_with_peft(rows):
    plain, fused = make_pair(dtype=torch.bfloat16)
    exact = copy.deepcopy(plain).float()
    x = torch.randn(rows, 12).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for model in (plain, fused):
            for layer in model.modules():
                if hasattr(layer, "cast_input_dtype_enabled"):
                    layer.cast_input_dtype_enabled = False
        of_plain, of_fused = plain(x).float(), fused(x).float()
    with torch.no_grad():
        wanted = exact(x.float())
    assert (of_fused - wanted).norm() <= 1.1 * (of_plain - wanted).norm()


@pytest.mark.parametrize(
    "config", [{"use_dora": True}, {"lora_bias": True}, {"use_rslora": True}, {"lora_dropout": 0.5}], ids=str
)
def test_other_kinds_of_lora_give_what_peft_gives(config):
    plain, fused = make_pair(**config)
    x = torch.randn(5, 12, dtype=torch.float64)
    results = []
    for model in (plain, fused):
        torch.manual_seed(1)  # of the dropout
        results.append(outcome(model.train(), x))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_adapters_off_is_the_base_and_merging_still_works():
    plain, fused = make_pair()
    x = torch.randn(5, 12, dtype=torch.float64)
    with torch.no_grad():
        with plain.disable_adapter(), fused.disable_adapter():
            assert torch.equal(fused(x), plain(x))
        merged = copy.deepcopy(fused).merge_and_unload()
        torch.testing.assert_close(merged(x), plain(x), rtol=1e-9, atol=1e-9)


def test_names_of_weights_stay():
    plain, fused = make_pair()
    assert get_peft_model_state_dict(fused).keys() == get_peft_model_state_dict(plain).keys()


def test_a_frozen_adapter_gets_no_gradient_and_passes_it_on():
    _, fused = make_pair()
    for parameter in fused.parameters():
        parameter.requires_grad_(False)
    x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    fused(x).sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is None for parameter in fused.parameters())


@pytest.mark.parametrize("rows", [5, 100])
def test_autocast_over_an_fp32_base_is_left_to_peft(rows):
    plain, fused = make_pair(dtype=torch.float32)
    x = torch.randn(rows, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for expected, actual in zip(outcome(plain, x), outcome(fused, x), strict=True):
            assert torch.equal(actual, expected)
