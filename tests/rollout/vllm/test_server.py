"""The process of a server: it lives as long as the run and no longer. A script stands for vLLM's python."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import make_lora, make_model

from hf_rlhf.errors import InputError
from hf_rlhf.models.policy import wrap_policy
from hf_rlhf.rollout.vllm.server import MODULE, VLLMServer, server_arguments

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def lasting(tmp_path):
    """Starts a process of its own as vLLM does, writes the ids of both, and stays."""
    return script(
        tmp_path, 'sleep 300 & echo "$$ $!" > "$0.pids.partial"; mv "$0.pids.partial" "$0.pids"; env > "$0.env"; wait'
    )


def script(folder, lines):
    file = folder / "python"
    file.write_text(f"#!/bin/sh\n{lines}\n")
    file.chmod(0o755)
    return file


def pids_of(python):
    file = Path(f"{python}.pids")
    within(10, file.exists)
    return [int(pid) for pid in file.read_text(encoding="utf-8").split()]


def within(seconds, condition):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_server_ends_with_all_that_it_started(lasting, tmp_path):
    server = VLLMServer(str(lasting), ["--model", "m"], tmp_path / "logs" / "server.log")
    server.start()
    pids = pids_of(lasting)
    server.start()  # it runs already
    assert server.running
    assert pids_of(lasting) == pids
    assert all(map(alive, pids))
    server.end()
    within(5, lambda: not any(map(alive, pids)))
    assert not server.running
    server.end()
    command = (tmp_path / "logs" / "server.log").read_text(encoding="utf-8").splitlines()[0]
    assert command == f"{lasting} -m {MODULE} --model m --host 127.0.0.1 --port {server.port}"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_server_does_not_outlive_a_run_that_is_killed(lasting, tmp_path, number):
    code = (
        "import signal, sys, time; from pathlib import Path; from hf_rlhf.rollout.vllm.server import VLLMServer\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a job in the background inherits ignored
        "server = VLLMServer(sys.argv[1], [], Path(sys.argv[2])); server.start(); time.sleep(300)"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code, str(lasting), str(tmp_path / "server.log")],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.DEVNULL,
    )
    pids = pids_of(lasting)
    run.send_signal(number)
    run.wait(20)
    within(15, lambda: not any(map(alive, pids)))


def test_a_server_is_no_rank_of_the_run(lasting, tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    server = VLLMServer(str(lasting), [], tmp_path / "server.log")
    server.start()
    written = Path(f"{lasting}.env")
    within(10, lambda: written.exists() and written.read_text(encoding="utf-8").endswith("\n"))
    server.end()
    names = {line.partition("=")[0] for line in written.read_text(encoding="utf-8").splitlines()}
    assert not names & {"RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK"}
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in names


def test_a_server_that_ends_is_shown_with_its_last_words(tmp_path):
    server = VLLMServer(str(script(tmp_path, "echo no module named vllm; exit 1")), [], tmp_path / "server.log")
    server.start()
    within(10, lambda: not server.running)
    with pytest.raises(InputError, match=r"server\.log(.|\n)*no module named vllm"):
        server.require_running()


def test_a_python_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="vllm_python='/no/such/python'"):
        VLLMServer("/no/such/python", [], tmp_path / "server.log").start()


def test_the_arguments_are_those_of_the_policy(tokenizer):
    base = make_model(tokenizer)
    base.config._name_or_path = "a/model"
    base.config._commit_hash = "c0ffee"
    policy = wrap_policy(base, make_lora(r=9, rank_pattern={"q_proj": 20}))

    def line(**given):
        settings = {"max_length": 96, "max_logprobs": 20, "on_cpu": True, "more": None} | given
        return " ".join(server_arguments(policy, **settings))

    common = (
        "--model a/model --dtype float32 --enable-lora --max-lora-rank 32 --max-model-len 96 --max-logprobs 20"
        " --logprobs-mode processed_logprobs --revision c0ffee"
    )
    assert line() == f"{common} --enforce-eager --no-enable-chunked-prefill"
    on_gpu = line(on_cpu=False, more="--tensor-parallel-size 2")
    assert on_gpu == f"{common} --gpu-memory-utilization 0.3 --tensor-parallel-size 2"


def test_a_policy_that_no_server_can_load_is_refused(tokenizer):
    settings = {"max_length": 96, "max_logprobs": 0, "on_cpu": True, "more": None}
    with pytest.raises(InputError, match="no name or folder"):
        server_arguments(wrap_policy(make_model(tokenizer), make_lora()), **settings)
    base = make_model(tokenizer)
    base.config._name_or_path = "a/model"
    with pytest.raises(InputError, match="lora_r=600"):
        server_arguments(wrap_policy(base, make_lora(r=600)), **settings)
