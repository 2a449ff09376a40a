"""The recipes from the command line: killed, resumed, and without a pickle in any folder."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file
from tiny import metrics_of
from tiny_data import saving_command

from hf_rlhf.cli import main

PICKLES = {b"\x80": "a pickle", b"PK\x03\x04": "an archive as torch.save writes it"}


@pytest.mark.parametrize("command", ["ppo", "reward", "sft"])
def test_a_recipe_leaves_no_pickle_and_goes_on(tmp_path, flags, write_rows, capsys, command):
    argv = saving_command(command, flags, write_rows)
    out = tmp_path / "out"
    assert main([*argv, "--resume", "auto"]) == 0
    files = [path for path in out.rglob("*") if path.is_file()]
    assert (out / "checkpoint-4" / "optimizer.safetensors") in files
    for file in files:
        if file.suffix == ".safetensors":  # which begins with a length that may be any byte
            load_file(file)
            continue
        found = [name for magic, name in PICKLES.items() if file.read_bytes().startswith(magic)]
        assert not found, f"{file} is {found[0]}"
        assert file.suffix not in (".pt", ".pth", ".bin", ".pkl"), file
    assert not (out / "run.lock").exists()
    rows = metrics_of(out)
    assert len([row for row in rows if "loss" in row]) == (4 if command == "ppo" else 2)

    assert main(argv) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main([*argv, "--resume", "never"]) == 2
    capsys.readouterr()
    assert main([*argv, "--resume", "auto", "--resume_from_checkpoint", "last"]) == 2
    assert "have the same meaning" in capsys.readouterr().err
    assert main([*argv, "--resume", str(out / "checkpoint-2")]) == 0
    assert metrics_of(out) == rows
    assert (out / "checkpoint-4.set-aside").is_dir()

    (out / "checkpoint-4" / "run_state.json").unlink()
    assert main([*argv, "--resume_from_checkpoint", str(out / "checkpoint-4")]) == 2
    assert "run_state.json is missing" in capsys.readouterr().err
    assert main([*argv, "--resume_from_checkpoint", "last"]) == 0
    assert metrics_of(out) == rows

    if command == "ppo":
        plan = (out / "plan.json").read_text()
        assert main([*argv, "--resume", "auto"]) == 0
        assert (out / "plan.json").read_text() == plan  # nothing was trained, and so nothing measured


@pytest.mark.slow
@pytest.mark.parametrize("command", ["reward", "sft"])
def test_two_ranks_save_and_go_on(tmp_path, flags, write_rows, command):
    argv = [*saving_command(command, flags, write_rows), "--ddp_find_unused_parameters", "false", "--resume", "auto"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "hf_rlhf.cli",
    ]
    out = tmp_path / "out"
    expected = None
    for _ in range(2):
        result = subprocess.run(
            [*torchrun, *argv], env=environment, capture_output=True, text=True, timeout=200, check=False
        )
        assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-4000:]
        assert json.loads((out / "checkpoint-4" / "manifest.json").read_text())["world_size"] == 2
        rows = metrics_of(out)
        assert [row["step"] for row in rows if "loss" in row] == [2, 4]
        assert expected in (None, rows)
        expected = rows
        shutil.rmtree(out / "checkpoint-4")  # and the second start makes the last two updates again


def test_a_full_disk_is_exit_status_1(tmp_path, flags, write_rows, capsys, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_rlhf.training.saving.save_state", full)
    assert main(saving_command("sft", flags, write_rows)) == 1
    error = capsys.readouterr().err
    assert "the run failed: the checkpoint of update 2 could not be written: " in error
    assert "Traceback" not in error
