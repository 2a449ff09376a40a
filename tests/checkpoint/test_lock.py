"""One run to a folder, and names that can be folders."""

import json
import os
import signal
import time

import pytest
from checkpoint.runs import in_child
from tiny import make_trainer
from tiny_data import PPO_FLAGS, prompt_rows

from hf_rlhf.checkpoint.lock import LOCK_FILE, FolderLock
from hf_rlhf.cli import main
from hf_rlhf.errors import InputError


@pytest.fixture
def other_run(tmp_path):
    """A process that holds tmp_path/run; gives its number."""
    child = os.fork()
    if child == 0:
        lock = FolderLock(tmp_path / "run")
        (tmp_path / "ready").touch()
        time.sleep(60)
        lock.release()
        os._exit(0)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    yield child
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except ProcessLookupError:
        pass


def test_a_second_run_is_refused_and_told_who_has_the_folder(other_run, tmp_path):
    with pytest.raises(InputError, match=rf"is in use by process {other_run} on \S+, since 20"):
        FolderLock(tmp_path / "run")
    with pytest.raises(InputError, match="is in use"):
        make_trainer(tmp_path / "run").train()
    with pytest.raises(InputError, match="is in use"):
        make_trainer(tmp_path / "run").step(["the cat"] * 8, [[5]] * 8, [0.0] * 8)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]


def test_the_lock_of_a_killed_run_is_taken_over(other_run, tmp_path, caplog):
    os.kill(other_run, signal.SIGKILL)
    os.waitpid(other_run, 0)
    assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == other_run
    with FolderLock(tmp_path / "run"):
        assert "left by a run that has ended" in caplog.text
        assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert not (tmp_path / "run").joinpath(LOCK_FILE).exists()


def test_one_process_may_take_it_again_and_keeps_it_to_the_last(tmp_path):
    def refused():
        FolderLock(tmp_path / "run")

    with FolderLock(tmp_path / "run"):
        with FolderLock(tmp_path / "run"):
            assert in_child(refused) != 0
        assert in_child(refused) != 0
    assert in_child(refused) == 0


def test_a_folder_made_for_a_run_that_wrote_nothing_is_gone(tmp_path):
    with FolderLock(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists()


NAMES = {
    "": "it is empty or has control characters",
    "  ": "it is empty or has control characters",
    "a\0b": "it is empty or has control characters",
    "a\nb": "it is empty or has control characters",
    "a\x1b]0;title\x07": "it is empty or has control characters",
    "file": "file is a file",
    "file/run": "file is a file",
    "/proc/run": "cannot be written to",
    "x" * 300: "cannot be written to",
}


@pytest.mark.parametrize(("name", "message"), NAMES.items(), ids=[ascii(name)[:20] for name in NAMES])
def test_what_cannot_be_a_folder_is_refused_before_anything_is_loaded(tmp_path, monkeypatch, capsys, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompt_rows()))
    flags = ["--dataset_name", "rows.jsonl", "--reward_funcs", "tiny:happy_reward", "--model_name_or_path", "none",
             "--use_cpu", "true", "--report_to", "none", "--per_device_train_batch_size", "4", *PPO_FLAGS]  # fmt: skip
    for command in ("ppo", "reward", "sft"):
        own = flags if command == "ppo" else list(flags[:2] + flags[4:12])
        assert main([command, *own, "--output_dir", name]) == 2
        error = capsys.readouterr().err
        assert error.count("error:") == 1
        assert message in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "rows.jsonl"]


@pytest.mark.parametrize("name", ["run with spaces", "läuft-日本", "a'b\"c", "-run", "..run", "CON"])
def test_unusual_names_work(tmp_path, name):
    trainer = make_trainer(tmp_path / name, max_steps=4, save_strategy="steps", save_steps=4)
    trainer.train()
    assert (tmp_path / name / "checkpoint-4" / "manifest.json").is_file()
