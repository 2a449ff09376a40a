"""A save may end at any of its steps: there is always a whole checkpoint, and nothing half-made is taken for one."""

import errno
import os
import shutil
import sys

import pytest
import torch
from checkpoint.runs import in_child, train_ppo
from tiny import make_trainer, metrics_of

from hf_rlhf.checkpoint.folders import checkpoints, commit, new_scratch, remove_leftovers, rotate
from hf_rlhf.checkpoint.resume import resume_point
from hf_rlhf.checkpoint.state import load_state, random_state, save_state, set_random_state
from hf_rlhf.errors import InputError, RunFailed

CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate"}


def watch_changes(act):
    """Call `act(name, arguments)` before each change this process makes to the disk; cannot be undone."""
    import safetensors.torch

    sync, save_file = os.fsync, safetensors.torch.save_file

    def audit(event, arguments):
        writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event in CHANGES:
            act(event, arguments)

    def watched_sync(descriptor):
        act("fsync", (os.readlink(f"/proc/self/fd/{descriptor}"),))
        sync(descriptor)

    def watched_save(tensors, file, *rest, **names):
        act("save", (str(file),))
        save_file(tensors, file, *rest, **names)
        with open(file, "rb+") as half:
            whole = half.read()
            half.truncate(len(whole) // 2)
            act("half", (str(file),))
            half.seek(0)
            half.write(whole)

    os.fsync, safetensors.torch.save_file = watched_sync, watched_save
    sys.addaudithook(audit)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trainer in the middle of its run, with two checkpoints."""
    return train_ppo(tmp_path_factory.mktemp("trained") / "run", max_steps=4)


def save_next(trainer, folder):
    """Save the third checkpoint of the run copied to `folder`; the first is then removed."""
    trainer.args.output_dir = str(folder)
    trainer.state.global_step = 6
    trainer._save_checkpoint(trainer.model, None)


def test_every_step_of_a_save_leaves_a_whole_checkpoint(trained, tmp_path):
    steps, ends = 0, []
    while True:
        folder = tmp_path / str(steps)
        shutil.copytree(trained.folder, folder)

        def crash(folder=folder, last=steps):
            made = iter(range(10**6))
            watch_changes(lambda *_: os._exit(9) if next(made) == last else None)
            save_next(trained, folder)

        if in_child(crash, stderr=tmp_path / "errors.txt") == 0:
            break
        chosen = resume_point(folder, "auto")
        ends.append(int(chosen.rsplit("-", 1)[1]))
        assert not list(folder.glob(".tmp-*"))
        shutil.rmtree(folder)
        steps += 1
    assert steps > 60
    assert ends == sorted(ends), "once the new checkpoint is there, it stays"
    assert set(ends) == {4, 6}
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-4", "checkpoint-6"]


def test_everything_is_on_the_disk_before_the_checkpoint_has_its_name(trained, tmp_path):
    """Check that no loss of power leaves a checkpoint with its name but without its content."""
    shutil.copytree(trained.folder, tmp_path / "run")
    run, record = tmp_path / "run", tmp_path / "record.txt"

    def recorded():
        lines = os.open(record, os.O_WRONLY | os.O_CREAT)
        watch_changes(lambda name, arguments: os.write(lines, f"{name} {arguments[0]}\n".encode()))
        save_next(trained, tmp_path / "run")

    assert in_child(recorded, stderr=tmp_path / "errors.txt") == 0, (tmp_path / "errors.txt").read_text()
    events = [line.split(" ", 1) for line in record.read_text().splitlines()]
    named = next(
        i
        for i, (name, path) in enumerate(events)
        if name == "os.rename" and path.startswith(f"{run}/.tmp-6") and "/" not in path[len(f"{run}/") :]
    )
    scratch = events[named][1]
    synced = {path.replace(scratch + "/", "") for name, path in events[:named] if name == "fsync"}
    files = {str(path.relative_to(tmp_path / "run" / "checkpoint-6"))
             for path in (tmp_path / "run" / "checkpoint-6").rglob("*")}  # fmt: skip
    assert files <= synced
    assert {"manifest.json", "reference", scratch} <= synced
    assert str(tmp_path / "run" / "metrics.jsonl") in synced
    last = max(i for i, (name, path) in enumerate(events) if name == "fsync" and path.startswith(scratch + "/"))
    assert not [event for event in events[last:named] if event[0] == "open"]
    after = events[named + 1 :]
    assert after[0] == ["fsync", str(tmp_path / "run")]
    removed = next(i for i, (name, path) in enumerate(after) if name == "os.rename" and path.endswith("checkpoint-2"))
    assert removed > 0


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), Exception("os error 28")])
@pytest.mark.parametrize("at", ["tokenizer", "optimizer", "manifest"])
def test_a_full_disk_ends_the_run_with_one_message_and_keeps_the_last_checkpoint(tmp_path, monkeypatch, error, at):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=4, max_steps=12)
    target = {
        "tokenizer": (trainer.processing_class, "save_pretrained"),
        "optimizer": (sys.modules["hf_rlhf.training.saving"], "save_state"),
        "manifest": (sys.modules["hf_rlhf.checkpoint.folders"], "write_manifest"),
    }[at]
    whole = getattr(*target)

    def full(*args, **kwargs):
        if trainer.state.global_step == 8:
            raise error
        return whole(*args, **kwargs)

    monkeypatch.setattr(*target, full)
    with pytest.raises(
        RunFailed, match=r"(?s)update 8 could not be written: .*GB are free.*checkpoint-4. --resume auto"
    ):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".tmp", "checkpoint"))] == [
        "checkpoint-4"
    ]
    monkeypatch.undo()
    resumed = make_trainer(tmp_path, save_strategy="steps", save_steps=4, max_steps=12)
    resumed.train(resume_from_checkpoint="auto")
    assert [row["step"] for row in metrics_of(tmp_path) if "iteration" in row] == [4, 8, 12]


# Folders


def make_checkpoint(folder, step):
    scratch = new_scratch(folder, step)
    scratch.mkdir(parents=True)
    (scratch / "content.txt").write_text(str(step))
    commit(scratch, folder / f"checkpoint-{step}", world_size=1)


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    for step in (2, 10, 4, 6, 8):
        make_checkpoint(tmp_path, step)
    rotate(tmp_path, 3, keep=str(tmp_path / "checkpoint-4"))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-8", "checkpoint-10"]
    rotate(tmp_path, 1, keep=str(tmp_path / "checkpoint-4"))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-10"]
    rotate(tmp_path, None)
    assert len(checkpoints(tmp_path)) == 2


def test_only_what_a_run_left_half_made_is_cleared(tmp_path):
    make_checkpoint(tmp_path, 4)
    mine = new_scratch(tmp_path, 6)
    mine.mkdir()
    others = [tmp_path / name for name in (".tmp-6-notes", ".tmp-x-" + "0" * 32, "tmp", ".tmp-", "checkpoint-best")]
    for other in others:
        other.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / (".tmp-8-" + "0" * 32)).symlink_to(outside)
    remove_leftovers(tmp_path)
    assert not mine.exists()
    assert all(other.is_dir() for other in [*others, outside])


def test_a_checkpoint_that_only_missed_its_name_is_given_it(tmp_path):
    make_checkpoint(tmp_path, 4)
    make_checkpoint(tmp_path, 8)
    os.rename(tmp_path / "checkpoint-8", new_scratch(tmp_path, 8))
    os.rename(tmp_path / "checkpoint-4", new_scratch(tmp_path, 4))
    make_checkpoint(tmp_path, 6)
    remove_leftovers(tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-8"]  # 4 was being removed


# States


def test_states_come_back_to_the_last_bit(tmp_path):
    shared = torch.tensor([1.5, float("nan")], dtype=torch.bfloat16)
    state = {
        "state": {
            0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3)[:, 1], "twice": shared},
            1: {"twice": shared},
        },
        "groups": [
            {"betas": (0.9, 0.999), "lr": 1 / 3, "inf": float("inf"), "none": None, "flag": True, "params": [0, 1]}
        ],
    }
    save_state(tmp_path, "state", state)
    loaded = load_state(tmp_path, "state")
    assert loaded["groups"] == state["groups"]
    assert isinstance(loaded["groups"][0]["betas"], tuple)
    assert list(loaded["state"]) == [0, 1]
    for name, tensor in state["state"][0].items():
        assert loaded["state"][0][name].dtype == tensor.dtype
        assert torch.equal(loaded["state"][0][name].nan_to_num(), tensor.nan_to_num())
    assert loaded["state"][0]["twice"] is loaded["state"][1]["twice"]


def test_what_a_checkpoint_cannot_hold_is_named(tmp_path):
    with pytest.raises(RunFailed, match=r"optimizer\.state\.0 of the training state is a set"):
        save_state(tmp_path, "optimizer", {"state": {0: {1, 2}}})


def test_random_numbers_go_on(tmp_path):
    import random

    import numpy as np

    def draw():
        return random.random(), random.gauss(0, 1), float(np.random.standard_normal()), torch.rand(3).tolist()

    draw()
    save_state(tmp_path, "random", random_state())
    expected = draw()
    draw()
    set_random_state(load_state(tmp_path, "random"))
    assert draw() == expected


def test_a_full_fine_tuning_run_keeps_what_is_wanted(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=4, max_steps=4, save_only_model=True)
    trainer.train()
    with pytest.raises(InputError, match="holds the model alone"):
        make_trainer(tmp_path, max_steps=8).train(resume_from_checkpoint="last")
