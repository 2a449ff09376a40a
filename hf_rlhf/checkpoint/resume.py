"""The checkpoint that a run resumes from, and the renaming of damaged and newer ones."""

import logging
from pathlib import Path

from hf_rlhf.checkpoint.folders import checkpoints, remove_leftovers, rename_unused, step_of
from hf_rlhf.checkpoint.manifest import DamagedCheckpoint, verified_facts
from hf_rlhf.distributed import by_first_rank, world_size
from hf_rlhf.errors import InputError
from hf_rlhf.records import METRICS_FILE, SAMPLES_FILE, TRAJECTORIES, held_by_another_run

NEVER, AUTO, LAST = "never", "auto", "last"

logger = logging.getLogger(__name__)


class VerifiedCheckpoint(str):
    """The path of a checkpoint whose every byte has been checked."""


def resume_point(folder: Path, wanted: str | bool | None) -> VerifiedCheckpoint | None:
    """Return the checkpoint that the run in `folder` resumes from, the same on every rank; None for a new run.

    Args:
        folder: where the run writes; the caller holds its lock.
        wanted: `never`; `auto`, the newest whole checkpoint, or a new run where there is none at all; `last`, the same
            but an error where there is none; or the path of a checkpoint. As in Trainer, True is `last`.

    What a killed run left half-made is cleared. Checkpoints in `folder` that are newer than the one chosen are renamed,
    as the run will come to their updates again.

    Raises `InputError` when nothing can be resumed, naming what is damaged in each checkpoint.
    """
    if isinstance(wanted, VerifiedCheckpoint):
        return wanted
    choice = {"none": NEVER, "false": NEVER, "true": LAST}.get(str(wanted).lower(), str(wanted))
    found = by_first_rank(lambda: _prepare(folder, choice))
    return None if found is None else VerifiedCheckpoint(found)


def _prepare(folder: Path, choice: str) -> str | None:
    remove_leftovers(folder)
    if choice == NEVER:
        return None
    damaged: dict[Path, str] = {}
    chosen = _newest(folder, damaged) if choice in (AUTO, LAST) else _named(Path(choice))
    if chosen is None:
        if choice == LAST:
            raise InputError(
                f"resume={LAST} is invalid: nothing to resume, {folder} holds no checkpoint. Use resume={AUTO} for a"
                " new run."
            )
        _clear_unfinished(folder)
        return None
    if chosen.resolve().parent != folder.resolve():
        if (folder / METRICS_FILE).exists():
            raise InputError(held_by_another_run(folder))
        return str(chosen)
    for newer in [path for path in checkpoints(folder) if step_of(path) > step_of(chosen)]:
        why = damaged.get(newer, f"{newer} is newer than the checkpoint to resume from")
        logger.warning(
            "%s. It is renamed to %s, and the run resumes from %s", why, rename_unused(newer).name, chosen.name
        )
    return str(chosen)


def _named(checkpoint: Path) -> Path:
    if not checkpoint.is_dir():
        raise InputError(
            f"resume={str(checkpoint)!r} is invalid: it is no folder. Give a checkpoint to resume from, {LAST!r} or"
            f" {AUTO!r}."
        )
    try:
        _verify(checkpoint)
    except DamagedCheckpoint as error:
        raise InputError(
            f"resume={checkpoint} is invalid: damaged or no checkpoint: {error}. Give another one, or {AUTO!r}."
        ) from error
    return checkpoint


def _newest(folder: Path, damaged: dict[Path, str]) -> Path | None:
    """Return the newest whole checkpoint, and add to `damaged` what is wrong with newer ones.

    Raises `InputError` when there are some, and none is whole.
    """
    for checkpoint in reversed(checkpoints(folder)):
        try:
            _verify(checkpoint)
        except DamagedCheckpoint as error:
            damaged[checkpoint] = f"{checkpoint} is damaged or no checkpoint: {error}"
        else:
            return checkpoint
    if damaged:
        raise InputError(
            "\n".join(
                [*damaged.values(), "No checkpoint is whole. Repair or remove them, or choose another output_dir."]
            )
        )
    return None


def _verify(checkpoint: Path) -> None:
    facts = verified_facts(checkpoint)
    if facts["world_size"] != world_size():
        raise InputError(
            f"{checkpoint} was written by {facts['world_size']} ranks, and this run has {world_size()}. Each rank"
            f" resumes its own random numbers and share of the data, so start the run with {facts['world_size']}."
        )


def _clear_unfinished(folder: Path) -> None:
    """Rename the logs of a run that was killed before its first checkpoint."""
    if any(folder.glob("*.safetensors")):
        raise InputError(held_by_another_run(folder))
    for name in (METRICS_FILE, SAMPLES_FILE, TRAJECTORIES):
        if (folder / name).exists():
            logger.warning(
                "no checkpoint in %s, so the run starts from the beginning. The old %s is renamed", folder, name
            )
            rename_unused(folder / name)
