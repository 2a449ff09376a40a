"""Checkpoint folders: each appears as a whole or not at all, and the last whole one is kept until the next is complete.

Every file of a checkpoint is written to a scratch folder beside it, flushed to the disk, listed in a manifest, and
renamed. Only then are old checkpoints removed. Whatever a killed run left half-made has a name by which the next run
recognizes it.
"""

import os
import re
import shutil
import uuid
from itertools import count
from pathlib import Path
from typing import Any

from hf_rlhf.checkpoint.manifest import DamagedCheckpoint, flush, verified_facts, write_manifest

PREFIX = "checkpoint-"
ASIDE = ".set-aside"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_SCRATCH = re.compile(r"\.tmp-(\d+)-[0-9a-f]{32}")


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder` by their names, whole or damaged, oldest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the update after which a checkpoint was taken."""
    match = _CHECKPOINT.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint.name} is not the name of a checkpoint")
    return int(match[1])


def new_scratch(folder: Path, step: int) -> Path:
    """Return a name for a scratch folder in `folder` that no other run uses."""
    return folder / f".tmp-{step}-{uuid.uuid4().hex}"


def commit(scratch: Path, checkpoint: Path, **facts: Any) -> None:
    """Rename the complete folder `scratch` to the checkpoint; it replaces one of that name, of the same run."""
    write_manifest(scratch, **facts)
    earlier = new_scratch(checkpoint.parent, step_of(checkpoint))
    if checkpoint.exists():
        os.rename(checkpoint, earlier)
    os.rename(scratch, checkpoint)
    flush(checkpoint.parent)
    shutil.rmtree(earlier, ignore_errors=True)


def rotate(folder: Path, limit: int | None, keep: str | None = None) -> None:
    """Remove the oldest checkpoints until `limit` are left; never the newest, nor `keep`."""
    found = checkpoints(folder)
    kept = {found[-1].name, *({Path(keep).name} if keep else ())} if found else set()
    surplus = len(found) - max(limit, len(kept)) if limit else 0
    for checkpoint in [path for path in found if path.name not in kept][: max(surplus, 0)]:
        remove(checkpoint)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint; a kill on the way leaves a scratch folder, and no half checkpoint."""
    scratch = new_scratch(checkpoint.parent, step_of(checkpoint))
    os.rename(checkpoint, scratch)
    shutil.rmtree(scratch)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed run left half-made in `folder`, and rename a checkpoint that was complete."""
    for scratch in sorted(folder.glob(".tmp-*")):
        match = _SCRATCH.fullmatch(scratch.name)
        if match is None or scratch.is_symlink() or not scratch.is_dir():
            continue
        checkpoint = folder / f"{PREFIX}{match[1]}"
        if not checkpoint.exists() and not any(step_of(path) > int(match[1]) for path in checkpoints(folder)):
            try:
                verified_facts(scratch)
            except DamagedCheckpoint:
                pass
            else:
                os.rename(scratch, checkpoint)
                continue
        shutil.rmtree(scratch)


def rename_unused(path: Path) -> Path:
    """Rename a checkpoint or log so that no run takes it for its own; return the new path."""
    names = (f"{path.name}{ASIDE}" + (f"-{number}" if number else "") for number in count())
    target = next(target for name in names if not (target := path.with_name(name)).exists())
    os.rename(path, target)
    return target
