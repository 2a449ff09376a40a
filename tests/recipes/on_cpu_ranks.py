"""Run a launch script of recipes/ as `accelerate launch` does, on a machine without GPUs: SCRIPT FLAGS."""

import os
import runpy
import sys
from pathlib import Path

import sharding_on_cpu

if __name__ == "__main__":
    given = sharding_on_cpu.allow()
    sys.argv = [*sys.argv[1:], *(word for flag, value in given.items() for word in (f"--{flag}", str(value)))]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))  # as Python does for a script
    status: object = None
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    # gloo's threads can abort an interpreter that ends in their midst
    os._exit(status if isinstance(status, int) else int(status is not None))
