"""Several real ranks on a CPU, started by torchrun."""

import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

TESTS = Path(__file__).parent
DDP = {"ACCELERATE_USE_CPU": "true"}


def torchrun(command, ranks=2, settings=DDP, *, seconds=240):
    """Run a script and its arguments on as many ranks, with a launcher's settings; returns what it printed."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        "PYTHONFAULTHANDLER": "1",  # a rank that aborts says where
        "HF_HUB_OFFLINE": "1",
        **settings,
    }
    starting = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command = [*starting, *map(str, command)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)


def run_ranks(command, ranks=2, settings=DDP, *, folder, seconds=240):
    """Run `torchrun` for a job that has to succeed and writes in `folder` alone.

    If a rank aborts, the job is done again with the folder as it was. Under gloo of torch 2.13 about one job in some
    hundred aborts. Any other end fails at once, as does a second abort.
    """
    with tempfile.TemporaryDirectory() as kept:
        shutil.copytree(folder, kept, dirs_exist_ok=True)
        done = torchrun(command, ranks, settings, seconds=seconds)
        if "Signal 6 (SIGABRT)" in done.stderr:
            warnings.warn(f"a rank aborted, and the job is done again: {_first_words(done.stderr)}", stacklevel=2)
            shutil.rmtree(folder)
            shutil.copytree(kept, folder)
            done = torchrun(command, ranks, settings, seconds=seconds)
    assert done.returncode == 0, f"{done.stdout[-2000:]}{_first_words(done.stderr)}\n...\n{done.stderr[-3000:]}"
    return done


def _first_words(errors):
    """Return the first words of the ranks, without warnings and torchrun's own lines."""
    lines = [line for line in errors.splitlines() if "Warning" not in line and "torch/distributed/elastic" not in line]
    return "\n".join(lines)[:4000]
