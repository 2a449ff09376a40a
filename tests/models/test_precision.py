"""bfloat16 where the device multiplies it in hardware, float32 elsewhere; the devices' own answers are made up here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import make_model, make_tokenizer

from hf_rlhf.errors import InputError
from hf_rlhf.models.load import load_causal_lm, load_sequence_classifier
from hf_rlhf.models.precision import current_device, native_dtype
from hf_rlhf.models.reward_model import load_reward_model
from hf_rlhf.recipes.arguments import ModelArguments, RewardTrainingArguments, SFTTrainingArguments

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("machine", "onednn", "avx512_bf16", "amx", "expected"),
    [
        ("x86_64", True, True, False, torch.bfloat16),
        ("x86_64", True, False, True, torch.bfloat16),
        ("x86_64", True, False, False, torch.float32),  # AVX512 without BF16, where oneDNN emulates
        ("x86_64", False, True, True, torch.float32),  # oneDNN held to AVX2
        ("aarch64", True, False, False, torch.bfloat16),
        ("aarch64", False, False, False, torch.float32),
    ],
)
def test_a_cpu_takes_bfloat16_where_it_multiplies_it(monkeypatch, machine, onednn, avx512_bf16, amx, expected):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert native_dtype("cpu") == expected


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_a_gpu_takes_bfloat16_from_compute_capability_8(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert native_dtype(torch.device("cuda", 0)) == expected


@pytest.mark.parametrize(("new", "expected"), [(False, torch.float32), (True, torch.bfloat16)])
def test_mps_takes_bfloat16_from_macos_14(monkeypatch, new, expected):
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: new)
    assert native_dtype("mps") == expected


def test_a_cuda_build_without_a_gpu_is_a_cpu(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available=False: None if check_available else cuda
    )
    assert current_device() == torch.device("cpu")
    assert native_dtype() == native_dtype("cpu")


def test_a_process_held_to_avx2_takes_float32():
    printed = subprocess.run(
        [sys.executable, "-c", "from hf_rlhf.models.precision import native_dtype; print(native_dtype('cpu'))"],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.strip() == "torch.float32"


@pytest.mark.parametrize("native", [torch.float32, torch.bfloat16])
def test_models_load_in_the_native_dtype_unless_another_is_asked_for(monkeypatch, tmp_path, native):
    monkeypatch.setattr("hf_rlhf.models.load.native_dtype", lambda device=None: native)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    make_model(tokenizer).save_pretrained(tmp_path)
    assert load_causal_lm(str(tmp_path)).dtype == native
    assert load_sequence_classifier(str(tmp_path)).dtype == native
    assert load_causal_lm(str(tmp_path), dtype="bfloat16").dtype == torch.bfloat16
    load_sequence_classifier(str(tmp_path), dtype="float32").save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    assert load_reward_model(str(tmp_path / "reward"))[0].model.dtype == native
    with pytest.raises(InputError, match="dtype='int8' must be one of native, bfloat16"):
        load_causal_lm(str(tmp_path), dtype="int8")


def test_the_flag_is_resolved_on_the_device_and_its_emulation_is_warned_about(monkeypatch, caplog):
    monkeypatch.setattr("hf_rlhf.recipes.arguments.native_dtype", lambda device=None: torch.float32)
    cpu = torch.device("cpu")
    assert ModelArguments().on(cpu).dtype == "float32"
    assert ModelArguments(dtype="float16").on(cpu).dtype == "float16"
    assert not caplog.records
    assert ModelArguments(dtype="bfloat16").on(cpu).dtype == "bfloat16"
    assert "this CPU does not multiply bfloat16 in hardware" in caplog.text


@pytest.mark.parametrize("arguments", [RewardTrainingArguments, SFTTrainingArguments])
@pytest.mark.parametrize("native", [torch.float32, torch.bfloat16])
def test_trls_autocast_follows_the_device(monkeypatch, tmp_path, arguments, native):
    monkeypatch.setattr("hf_rlhf.recipes.arguments.native_dtype", lambda device=None: native)
    folder = str(tmp_path)
    assert arguments(output_dir=folder).bf16 is (native == torch.bfloat16)
    assert arguments(output_dir=folder, bf16=True).bf16 is True
    assert arguments(output_dir=folder, bf16=False).bf16 is False
