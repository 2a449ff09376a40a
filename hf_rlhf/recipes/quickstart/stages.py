"""Stages whose results stay on disk: done once, reused when the same settings are run again."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_rlhf.errors import InputError

STAGE_FILE = "stage.json"


def run_stage(folder: Path, settings: dict[str, Any], make: Callable[[Path], None]) -> bool:
    """Fill `folder` by `make(scratch)` unless it holds the result for `settings`; returns whether it ran.

    The work happens in a hidden folder beside it, which takes its place when it is complete: what is there is whole.
    Only folders that a stage has made are ever replaced.
    """
    marker = folder / STAGE_FILE
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == settings:
        return False
    if folder.exists() and not marker.is_file():
        raise InputError(f"{folder} is there already and was not made by this command; choose another output_dir")
    scratch = folder.with_name(f".{folder.name}.partial")
    if scratch.exists():
        shutil.rmtree(scratch)
    scratch.mkdir(parents=True)
    make(scratch)
    (scratch / STAGE_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if marker.is_file():
        shutil.rmtree(folder)
    os.replace(scratch, folder)
    return True
