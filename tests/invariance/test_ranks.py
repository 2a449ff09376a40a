"""Two ranks give the weights and metrics of one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import metrics_of

SCRIPT = Path(__file__).with_name("ppo_script.py")


def in_this_process(folder, **flags):
    spec = importlib.util.spec_from_file_location("ppo_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.train(folder, **flags)


def on_ranks(folder, ranks, **flags):
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "HF_HUB_OFFLINE": "1",
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    arguments = [str(folder), str(ranks), *(f"{name}={value}" for name, value in flags.items())]
    result = subprocess.run(
        [*torchrun, str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-6000:]


@pytest.mark.parametrize(
    ("ranks", "flags"),
    [
        (2, {"per_device_train_batch_size": 4}),
        (2, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "top_k": 12}),
    ],
    ids=["half batches", "accumulated and truncated"],
)
def test_ranks_change_nothing(tmp_path, ranks, flags):
    in_this_process(tmp_path / "one", **({"top_k": flags["top_k"]} if "top_k" in flags else {}))
    on_ranks(tmp_path / "ranks", ranks, **flags)

    for file in ("adapter_model.safetensors", "value_head.safetensors"):
        one, other = load_file(tmp_path / "one" / file), load_file(tmp_path / "ranks" / file)
        assert set(one) == set(other)
        for name, weight in one.items():
            assert weight.norm() > 0
            assert (other[name] - weight).norm() <= 1e-6 * weight.norm(), name

    one, other = metrics_of(tmp_path / "one"), metrics_of(tmp_path / "ranks")
    assert [row["step"] for row in one] == [row["step"] for row in other]
    for row, twin in zip(one, other, strict=True):
        assert set(row) == set(twin)
        for key, value in row.items():
            floor = 1e-5 if key in ("val/first_ratio_error", "sampling/logp_gap") else 1e-6  # these measure rounding
            assert twin[key] == pytest.approx(value, rel=1e-5, abs=floor), key
    assert (tmp_path / "one" / "samples.jsonl").read_text() == (tmp_path / "ranks" / "samples.jsonl").read_text()
