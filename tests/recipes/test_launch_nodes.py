"""The launch script for several machines, tried as two machines of one CPU process each."""

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


def start(program, **variables):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **variables}
    return subprocess.Popen(
        [SCRIPT, program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )


def test_two_machines_are_one_run(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
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
