"""Pushing against a server on this machine: what it refuses is raised, soon, and says how to push again."""

import shlex
import subprocess
import sys
import time

import pytest
from fake_hub import TOKEN, environment_for, fake_hub

from hf_rlhf.hub.push import LEFT_OUT, _upload_command

PUSH = """
import sys
from pathlib import Path
from hf_rlhf.errors import InputError, PushError
from hf_rlhf.hub import push
push.ANSWER_SECONDS = 1.0
try:
    if sys.argv[1] == "open":
        print(push.open_repository(Path(sys.argv[2]), sys.argv[3]))
    else:
        print(push.push_folder(Path(sys.argv[2]), sys.argv[3]))
except (InputError, PushError) as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def folder(tmp_path):
    """A finished run."""
    folder = tmp_path / "my_model"
    (folder / "checkpoint-2").mkdir(parents=True)
    (folder / "checkpoint-2" / "adapter.safetensors").write_bytes(b"old")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# model\n", encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)))
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / ".secret").write_bytes(b"hidden")
    for name in (
        "merged/.env",
        "merged/.cache/x",
        "critic/README.md",
        "critic/checkpoint-3/a",
        "vllm/adapter",
        "run.lock",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"left out")
    for name in ("x.pkl", "merged/y.pickle", "b.joblib", "a.ckpt", "c.pt"):
        (folder / name).write_bytes(b"pickle")
    (folder / "merged" / "model.safetensors").write_bytes(b"merged")
    return folder


def push(what, folder, hub, tmp_path, name="someone/model", token=TOKEN):
    argv = [sys.executable, "-c", PUSH, what, str(folder), name]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment_for(hub, tmp_path, token), timeout=100)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done.stdout.strip()


def test_what_is_pushed_is_the_folder_bit_for_bit_without_pickles_checkpoints_and_hidden_files(folder, tmp_path):
    with fake_hub() as hub:
        assert "commit/1" in push("push", folder, hub, tmp_path)
    names = ("README.md", "adapter_model.safetensors", "merged/model.safetensors")
    assert hub.files == {name: (folder / name).read_bytes() for name in names}
    assert hub.tokens == {f"Bearer {TOKEN}"}  # as a header, and nowhere else
    assert TOKEN.encode() not in hub.received
    assert sum("/commit/" in path for path in hub.requests) == 1


def test_the_command_that_pushes_again_leaves_out_the_same_and_takes_any_folder(tmp_path):
    command = shlex.split(_upload_command(tmp_path / "my model", "someone/model"))
    assert command[:4] == ["hf", "upload", "someone/model", str(tmp_path / "my model")]
    assert command[5::2] == LEFT_OUT
    assert set(command[4::2]) == {"--exclude"}


@pytest.mark.parametrize("after", [0, 3, 4], ids=["create", "preupload", "commit"])
@pytest.mark.parametrize("status", [401, 403, 413])
def test_a_push_that_is_refused_at_any_step_is_raised(folder, tmp_path, status, after):
    with fake_hub(status, after) as hub:
        said = push("push", folder, hub, tmp_path)
    assert said.startswith("PushError: the model is trained and saved in"), said
    assert f"hf upload someone/model {folder}" in said
    assert str(status) in said
    assert ("hf auth login" in said) == (status in (401, 403))


@pytest.mark.parametrize("status", [500, "hang", "cut"])
def test_a_hub_that_fails_or_falls_silent_is_raised_soon(folder, tmp_path, status):
    started = time.monotonic()
    with fake_hub(status) as hub:
        said = push("push", folder, hub, tmp_path)
    assert said.startswith("PushError"), said
    assert "hf upload" in said
    assert time.monotonic() - started < 60


def test_no_network_no_token_and_a_wrong_name_are_told_before_training(folder, tmp_path):
    nobody = "http://127.0.0.1:9"
    assert "in reach" in push("open", folder, nobody, tmp_path)
    with fake_hub() as hub:
        assert push("open", folder, hub, tmp_path) == "someone/model"
        said = push("open", folder, hub, tmp_path, name="not a name/at/all")
        assert said.startswith("InputError: push_to_hub:")
        assert "owner/name" in said
        said = push("open", folder, hub, tmp_path, token=None)
        assert said.startswith("InputError: push_to_hub:")
        assert "hf auth login" in said
