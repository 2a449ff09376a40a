"""The launch script for several machines, tried as two machines of one CPU process each."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "recipes" / "launch_nodes.sh"
PROGRAM = """
import torch
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
total = accelerator.reduce(torch.tensor([accelerator.process_index + 1.0]))
print("process", accelerator.process_index, "of", accelerator.num_processes, "sum", total.item(), flush=True)
accelerator.wait_for_everyone()
accelerator.end_training()
"""


def start(*program, **variables):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **variables}
    return subprocess.Popen(
        [SCRIPT, *map(str, program)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_two_machines_are_one_run(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    port = free_port()
    machines = [
        start(
            program,
            NODES="2",
            NODE_RANK=str(rank),
            HEAD="127.0.0.1",
            PORT=port,
            PROCESSES="1",
            ACCELERATE_USE_CPU="true",
        )
        for rank in range(2)
    ]
    outputs = [machine.communicate(timeout=120) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert [output.strip() for output, _ in outputs] == ["process 0 of 2 sum 3.0", "process 1 of 2 sum 3.0"]


def test_a_strategy_is_that_of_its_file_on_every_machine(tmp_path):
    """Each process says what the launcher told it; whether that shards is another test's affair."""
    program = tmp_path / "program.py"
    program.write_text(
        "import json, os\n"
        "names = 'RANK', 'WORLD_SIZE', 'FSDP_VERSION', 'ACCELERATE_USE_FSDP', 'MASTER_PORT'\n"
        "print(json.dumps([os.environ.get(name) for name in names]), flush=True)\n"
    )
    common = {"NODES": "2", "HEAD": "127.0.0.1", "PORT": free_port(), "PROCESSES": "1", "STRATEGY": "fsdp2"}
    machines = [start(program, **common, NODE_RANK=str(rank)) for rank in range(2)]
    outputs = [machine.communicate(timeout=120) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    told = [json.loads(output.splitlines()[-1]) for output, _ in outputs]
    assert told == [[str(rank), "2", "2", "true", common["PORT"]] for rank in range(2)]


def test_an_unknown_strategy_is_named(tmp_path):
    machine = start(tmp_path / "none.py", NODES="1", NODE_RANK="0", HEAD="127.0.0.1", PROCESSES="1", STRATEGY="fsdp")
    _, error = machine.communicate(timeout=60)
    assert machine.returncode == 2
    assert "STRATEGY=fsdp is invalid" in error


def test_a_machine_without_gpus_is_told_what_to_do(tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexit 9\n")
    tool.chmod(0o755)
    machine = start(
        tmp_path / "none.py", NODES="1", NODE_RANK="0", HEAD="127.0.0.1", PATH=f"{tmp_path}:{os.environ['PATH']}"
    )
    _, error = machine.communicate(timeout=60)
    assert machine.returncode == 2
    assert "PROCESSES=1" in error


def test_what_is_missing_is_named(tmp_path):
    machine = start(tmp_path / "none.py", NODE_RANK="0", HEAD="127.0.0.1", NODES="")
    _, error = machine.communicate(timeout=60)
    assert machine.returncode != 0
    assert "say how many machines: NODES=2" in error
