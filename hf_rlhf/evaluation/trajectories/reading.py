"""The trajectories of one iteration, read from the folder of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_rlhf.credentials import printable
from hf_rlhf.errors import InputError
from hf_rlhf.ppo.trajectories import COLUMNS, trajectory_files


@dataclass(frozen=True)
class Trajectories:
    """Completions of one iteration, as `hf_rlhf.ppo.trajectories` wrote them.

    Attributes:
        run: the folder of the run.
        iteration: counted from 1.
        written: all iterations whose completions the run wrote.
        rows: the completions, each with the columns of `COLUMNS`.
    """

    run: Path
    iteration: int
    written: list[int]
    rows: list[dict[str, Any]]


def require_trajectories(run: Path) -> dict[int, Path]:
    """Return the file of each iteration that a run wrote.

    Raises `InputError` for what is no folder of a run, and for a run without trajectories.
    """
    if not run.is_dir():
        raise InputError(f"run_dir={str(run)!r} is invalid: it is no folder. Give the output_dir of `hf-rlhf ppo`.")
    files = trajectory_files(run)
    if not files:
        raise InputError(
            f"run_dir={str(run)!r} is invalid: it holds no trajectories. Train with --log_trajectories 1, or resume it"
            " so: `hf-rlhf ppo` writes them while it trains."
        )
    return files


def read_trajectories(
    run: Path, iteration: int | None = None, rows: Sequence[int] | None = None, *, most: int | None = None
) -> Trajectories:
    """Return completions of one iteration, by default of the last one that was written.

    Args:
        run: the `output_dir` of PPO.
        iteration: counted from 1.
        rows: places of the completions, counted from 0; by default all, or the first `most`.
        most: see `rows`.

    Raises `InputError` for what the run has not, and for a file that cannot be read.
    """
    files = require_trajectories(run)
    iteration = max(files) if iteration is None else iteration
    if iteration not in files:
        raise InputError(
            f"iteration={iteration} is invalid: the run wrote the trajectories of {in_words(list(files))}. Name one of"
            " them."
        )
    found = _read(files[iteration])
    chosen = list(range(len(found)))[:most] if rows is None else list(rows)
    if absent := [row for row in chosen if not 0 <= row < len(found)]:
        raise InputError(
            f"rows={absent[0]} is invalid: iteration {iteration} has {len(found)} rows, counted from 0. Name those."
        )
    return Trajectories(run, iteration, list(files), [found[row] for row in chosen])


def in_words(iterations: Sequence[int]) -> str:
    """Return iterations as words, of many the first and the last."""
    if len(iterations) == 1:
        return f"iteration {iterations[0]}"
    shown = [str(each) for each in iterations]
    shown = [*shown[:8], "...", shown[-1]] if len(shown) > 10 else shown
    return f"iterations {', '.join(shown)}"


def _read(file: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file).read()
        table.validate(full=True)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise InputError(f"{file} cannot be read ({printable(str(error), 200)}). Show another iteration.") from error
    if absent := [name for name in COLUMNS if name not in table.column_names]:
        raise InputError(f"{file} has no column {absent[0]}: another version wrote it. Show it with that version.")
    return table.to_pylist()
