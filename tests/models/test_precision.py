"""bfloat16 where the device multiplies it in hardware, float32 elsewhere; the devices' own answers are made up here."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import make_model, make_tokenizer

from hf_rlhf.errors import InputError
from hf_rlhf.models.load import load_causal_lm, load_sequence_classifier
from hf_rlhf.models.precision import Slowdown, current_device, native_dtype
from hf_rlhf.models.reward_model import load_reward_model
from hf_rlhf.recipes.arguments import ModelArguments, RewardTrainingArguments, SFTTrainingArguments

REPOSITORY = Path(__file__).parents[2]
ONEDNN = "torch.ops.mkldnn._is_mkldnn_bf16_supported"


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


# A device by type, and what makes it one that multiplies bfloat16 in hardware, or not
DEVICES = {
    "CPU with bfloat16": ("cpu", {"torch.cpu._is_avx512_bf16_supported": True, ONEDNN: True}, torch.bfloat16),
    "CPU held to AVX2": ("cpu", {"torch.cpu._is_avx512_bf16_supported": True, ONEDNN: False}, torch.float32),
    "Arm with bfloat16": ("cpu", {"platform.machine": "aarch64", ONEDNN: True}, torch.bfloat16),
    "Arm without": ("cpu", {"platform.machine": "aarch64", ONEDNN: False}, torch.float32),
    "CUDA 7.5": ("cuda", {"torch.cuda.get_device_capability": (7, 5)}, torch.float32),
    "CUDA 8.0": ("cuda", {"torch.cuda.get_device_capability": (8, 0)}, torch.bfloat16),
    "MPS of macOS 13": ("mps", {"torch.backends.mps.is_macos_or_newer": False}, torch.float32),
    "MPS of macOS 14": ("mps", {"torch.backends.mps.is_macos_or_newer": True}, torch.bfloat16),
}


@pytest.mark.parametrize("name", DEVICES)
def test_the_flag_is_resolved_on_each_device_and_slow_bfloat16_warned_about(monkeypatch, caplog, name):
    kind, capabilities, native = DEVICES[name]
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for what, answer in capabilities.items():
        monkeypatch.setattr(what, lambda *_, answer=answer: answer)
    measured = [Slowdown(1.2 if native == torch.bfloat16 else 7.25)]
    monkeypatch.setattr(Slowdown, "measured", lambda device: measured[-1])
    device = torch.device(kind)
    assert ModelArguments().on(device).dtype == str(native).removeprefix("torch.")
    assert ModelArguments(dtype="float16").on(device).dtype == "float16"
    assert not caplog.records
    assert ModelArguments(dtype="bfloat16").on(device).dtype == "bfloat16"
    if native == torch.float32:
        assert f"this {kind.upper()} does not multiply bfloat16 in hardware" in caplog.text
        assert "7.2 times as slow as float32 here" in caplog.text
        return
    assert not caplog.records
    measured.append(Slowdown(3.0))
    assert ModelArguments().on(device).dtype == "bfloat16"  # whatever is measured
    assert f"this {kind.upper()} says that it multiplies bfloat16 in hardware" in caplog.text
    assert "3 times as slow as float32 here" in caplog.text


@pytest.mark.parametrize("native", [torch.float32, torch.bfloat16])
def test_a_run_that_trains_every_weight_is_in_float32(monkeypatch, caplog, native):
    monkeypatch.setattr("hf_rlhf.recipes.arguments.native_dtype", lambda device: native)
    monkeypatch.setattr(Slowdown, "measured", lambda device: Slowdown(35.0))
    assert ModelArguments(use_peft=False).on(torch.device("cpu")).dtype == "float32"
    ModelArguments(use_peft=False, dtype="bfloat16").on(torch.device("cpu"))
    assert not caplog.records  # no base is in bfloat16


@pytest.mark.parametrize(
    ("slowdown", "words"),
    [
        (Slowdown(120.0), "120 times as slow as float32"),
        (Slowdown(1234.0, at_least=True), "at least 1,200 times as slow as float32"),
        (Slowdown(7.25), "7.2 times as slow as float32"),
        (Slowdown(1.02), "as fast as float32"),
        (Slowdown(0.97), "as fast as float32"),
        (Slowdown(0.4), "2.5 times as fast as float32"),
        (Slowdown(1 / 150), "150 times as fast as float32"),
    ],
)
def test_a_slowdown_in_words(slowdown, words):
    assert str(slowdown) == words


@pytest.mark.parametrize("times", [0.4, 1.02])
def test_emulation_that_is_no_slower_is_not_warned_about(monkeypatch, caplog, times):
    monkeypatch.setattr("hf_rlhf.models.precision._multiplies_bfloat16", lambda device: False)
    monkeypatch.setattr(Slowdown, "measured", lambda device: Slowdown(times))
    assert ModelArguments(dtype="bfloat16").on(torch.device("cpu")).dtype == "bfloat16"
    assert not caplog.records


@pytest.mark.parametrize(
    ("speed", "words"), [(4e9, "4 times as slow"), (0.1e9, "at least 80 times as slow"), (32e9, "2 times as fast")]
)
def test_the_measurement_keeps_its_limit_and_the_random_numbers(monkeypatch, speed, words):
    seconds = [0.0]

    def multiply(states, weight):
        work = 2 * states.shape[0] * weight.numel()
        seconds[0] += work / (speed if states.dtype == torch.bfloat16 else {4e9: 16e9, 0.1e9: 8e9, 32e9: 16e9}[speed])

    monkeypatch.setattr(torch.nn.functional, "linear", multiply)
    monkeypatch.setattr("time.perf_counter", lambda: seconds[0])
    before = torch.get_rng_state()
    Slowdown.measured.__func__.cache_clear()
    try:
        assert str(Slowdown.measured(torch.device("cpu"))) == f"{words} as float32"
        spent = seconds[0]
        Slowdown.measured(torch.device("cpu"))
    finally:
        Slowdown.measured.__func__.cache_clear()
    assert spent < 1
    assert seconds[0] == spent  # measured once
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="AVX2 is of x86")
def test_a_process_held_to_avx2_measures_how_slow_bfloat16_is():
    code = (
        "import torch; from hf_rlhf.recipes.arguments import ModelArguments\n"
        "print(ModelArguments().on(torch.device('cpu')).dtype,"
        " ModelArguments(dtype='bfloat16').on(torch.device('cpu')).dtype)"
    )
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    held = {"ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | held, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["float32", "bfloat16"]
    found = re.search(r"in it is (at least )?([\d.]+) times as slow as float32 here", done.stderr)
    assert found is not None, done.stderr
    assert float(found[2]) > 1


@pytest.mark.parametrize("arguments", [RewardTrainingArguments, SFTTrainingArguments])
@pytest.mark.parametrize("native", [torch.float32, torch.bfloat16])
def test_trls_autocast_follows_the_device(monkeypatch, tmp_path, arguments, native):
    monkeypatch.setattr("hf_rlhf.recipes.arguments.native_dtype", lambda device=None: native)
    folder = str(tmp_path)
    assert arguments(output_dir=folder).bf16 is (native == torch.bfloat16)
    assert arguments(output_dir=folder, bf16=True).bf16 is True
    assert arguments(output_dir=folder, bf16=False).bf16 is False
