"""Stages whose results stay on disk: done once, reused for the same settings, resumed where they were."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hf_rlhf.errors import InputError

STAGE_FILE, PARTIAL = "stage.json", ".partial"


def run_stage(folder: Path, settings: dict[str, Any], make: Callable[[Path], None]) -> bool:
    """Fill `folder` by `make(scratch)` unless it holds the result for `settings`; return whether it ran.

    The work happens in a folder of the same name in the hidden folder `.partial` beside it, and takes its place when it
    is complete: what is there is whole. After a kill, `make` gets that folder as it was left, if the settings are still
    the same; else an empty one. Only folders that a stage has made are ever replaced.
    """
    scratch, replaced = folder.parent / PARTIAL / folder.name, folder.with_name(f".{folder.name}.replaced")
    _remove(replaced)
    if _settings_in(folder) == settings:
        return False
    if folder.exists() and not (folder / STAGE_FILE).is_file():
        raise InputError(f"{folder} is there already and was not made by this command. Choose another output_dir")
    if _settings_in(scratch) != settings:
        _remove(scratch)
        scratch.mkdir(parents=True)
        (scratch / STAGE_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    make(scratch)
    if folder.exists():
        os.rename(folder, replaced)
    os.rename(scratch, folder)
    with suppress(OSError):  # another stage's work may be in it
        scratch.parent.rmdir()
    _remove(replaced)
    return True


def _settings_in(folder: Path) -> dict[str, Any] | None:
    """Return the settings of a stage's folder; None where there is none, or a kill has torn its file."""
    try:
        return json.loads((folder / STAGE_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _remove(folder: Path) -> None:
    """Delete a stage's folder, its settings first, so that after a kill the rest does not look like a result."""
    if folder.exists():
        (folder / STAGE_FILE).unlink(missing_ok=True)
        shutil.rmtree(folder)
