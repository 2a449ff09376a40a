"""The script for machines with GPUs, as far as it goes without one."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sharding_on_cpu import HAS_DEEPSPEED

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def run_script(*flags):
    path = os.pathsep.join([str(SCRIPT.parents[1]), *sys.path])
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, flags)],
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_part_is_done_or_skipped_for_want_of_a_package(tmp_path):
    done = run_script("--cpu", "--tiny", "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    parts = {part["name"]: part for part in json.loads((tmp_path / "out" / "gpu.json").read_text())["parts"]}
    without = {"PPO of TRL": "needs --peer_python"}
    launches = ["ddp", "fsdp2"]
    for strategy in ("zero2", "zero3"):
        if HAS_DEEPSPEED:
            launches.append(strategy)
        else:
            without |= {f"{recipe}, {strategy}": "needs deepspeed" for recipe in ("reward", "sft", "ppo")}
    if not importlib.util.find_spec("bitsandbytes"):
        without["ppo, 4-bit base"] = "needs bitsandbytes"
    assert {name: part["note"] for name, part in parts.items() if part["result"] == "skipped"} == without
    run_here = {name: part for name, part in parts.items() if part["result"] != "skipped"}
    launched = {f"{recipe}, {launch}" for recipe in ("reward", "sft", "ppo") for launch in launches}
    assert set(run_here) - {"ppo, 4-bit base"} == {"PPO", "FLOPs utilisation of the update", *launched}
    refused = {name for name, part in run_here.items() if part["result"] == "refused"}
    assert refused == launched & {"ppo, zero3"}
    assert {part["result"] for name, part in run_here.items() if name not in refused} == {"done"}, run_here
    launched -= refused
    for name in launched:
        assert len(run_here[name]["reports"]) == 2, "one report of each rank"
        assert run_here[name]["peak_gb"] > 0.1
    assert "% of" in parts["FLOPs utilisation of the update"]["note"]
    for name in parts:
        assert f"| {name} |" in done.stdout


def test_a_part_that_fails_is_a_row_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu

    setting = gpu.Setting(tmp_path, cpu=True, tiny=True, peer_python=None)
    raising = gpu.run("a part", [sys.executable, "-c", "raise ValueError('no such thing')"], setting)
    assert (raising.result, raising.note) == ("failed", "ValueError: no such thing")
    message = "import sys; print('error: use DDP', file=sys.stderr); sys.exit(2)"
    refused = gpu.run("another", [sys.executable, "-c", message], setting)
    assert (refused.result, refused.note) == ("refused", "use DDP")
    missing = gpu.run("a third", [tmp_path / "no_python"], setting)
    assert missing.result == "failed"
    assert gpu.table([raising, refused, missing]).count("\n") == 4


def test_without_a_gpu_it_says_what_can_run(tmp_path):
    done = run_script("--output_dir", tmp_path / "out")
    assert done.returncode == 2
    assert "--cpu --tiny" in done.stderr
