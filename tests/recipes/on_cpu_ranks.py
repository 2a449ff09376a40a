"""Run a launch script of recipes/ as `accelerate launch` does, on a machine without GPUs: SCRIPT FLAGS."""

import runpy
import sys
from pathlib import Path

import sharding_on_cpu

if __name__ == "__main__":
    given = sharding_on_cpu.allow()
    sys.argv = [*sys.argv[1:], *(word for flag, value in given.items() for word in (f"--{flag}", str(value)))]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))  # as Python does for a script
    runpy.run_path(sys.argv[0], run_name="__main__")
