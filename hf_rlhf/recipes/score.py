"""Rewards of the completions of a dataset: into the cache, beside the rows, or as a filter of them."""

import logging
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hf_rlhf.data.files import read_rows
from hf_rlhf.data.rows import LoadedRows
from hf_rlhf.data.scored_texts import COMPLETIONS, ScoredText, find_texts
from hf_rlhf.errors import InputError
from hf_rlhf.ppo.scores import ScoreShaper, ScoreShaping
from hf_rlhf.progress import progress_of, say
from hf_rlhf.recipes.arguments import flag
from hf_rlhf.recipes.reward_flags import RewardFlags, load_rewards, reward_sources
from hf_rlhf.records import write_json_lines
from hf_rlhf.rewards.cache import RewardCache
from hf_rlhf.rewards.calls import required_arguments
from hf_rlhf.rewards.contract import Rewards
from hf_rlhf.types import Completion, Trajectory

logger = logging.getLogger(__name__)

_OF_THE_CALL = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")


@dataclass
class ScoreArguments(RewardFlags):
    """The set, the rewards, and what becomes of both."""

    dataset_name: str | None = flag(None, "Hub name, folder, or .jsonl, .json, .csv, .parquet file (also .gz).")
    dataset_config: str | None = flag(None, "Configuration of a Hub dataset.")
    dataset_split: str = flag("train", "Split to score.")
    max_samples: int | None = flag(None, "Score only the first rows.")
    skip_bad_rows: int = flag(0, "Skip up to this many unusable rows; one more is an error.")
    output: str | None = flag(None, "File (.jsonl) for the rows with their scores.")
    min_score: float | None = flag(None, "Write only rows whose completions all have at least this score.")
    max_score: float | None = flag(None, "Write only rows whose completions all have at most this score.")
    batch_size: int = flag(64, "Completions scored, and kept in the cache, at a time.")

    def __post_init__(self):
        if not self.dataset_name:
            raise InputError("dataset_name is missing. Name the set whose completions are scored")
        if self.output is None and self.reward_cache is None:
            raise InputError("output and reward_cache are missing, so nothing would be kept. Give one of them")
        if self.output is None and not (self.min_score is None and self.max_score is None):
            raise InputError("min_score and max_score say which rows are written. Give an output for them")
        for name in ("batch_size", "max_samples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} is invalid: it must be at least 1")


class Scored(NamedTuple):
    """One completion's score, None where no reward scored it, and the rewards that it is made of."""

    score: float | None
    rewards: dict[str, float | None]


def score_dataset(arguments: ScoreArguments) -> dict[str, float]:
    """Score all completions of a set, and write the rows with their scores; return what is printed, too.

    What was scored before comes from the cache, so a command that was killed resumes there.

    Raises `InputError` for anything wrong in the flags, the rows and the rewards, before the first is scored.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("hf-rlhf score runs in one process. Start it without a launcher")
    output = _free_output(arguments.output)
    if not arguments.reward_names:
        raise InputError("no reward: give reward_model_path, or reward_funcs")
    sources = reward_sources(arguments)  # before the rows are read
    cache = None if arguments.reward_cache is None else RewardCache(arguments.reward_cache)
    rows = read_rows(
        str(arguments.dataset_name),
        split=arguments.dataset_split,
        config_name=arguments.dataset_config,
        skip_bad_rows=arguments.skip_bad_rows,
    )
    if arguments.max_samples is not None:
        rows = rows.select(range(min(arguments.max_samples, len(rows.dataset))))
    rows, texts = find_texts(rows)
    _require_free_columns(rows, texts)
    rewards = load_rewards(arguments, sources)
    _require_scorable(rewards, rows)
    if cache is not None:
        rewards.use_cache(cache)
    scored, held = score_texts(rewards, texts, rows.by_row(), arguments.batch_size)
    kept = _kept_rows(texts, scored, arguments)
    if output is not None:
        _write(output, rows, texts, scored, kept)
    return _report(texts, scored, held, len(rows.dataset), len(kept), output)


def score_texts(
    rewards: Rewards, texts: Sequence[ScoredText], rows: Sequence[Mapping[str, Any]], batch_size: int
) -> tuple[list[Scored], dict[str, list[float]]]:
    """Return the score of each text, and for each reward of a cache which texts the cache held (1.0 or 0.0)."""
    shaper = ScoreShaper(ScoreShaping(max_completion_length=1), rewards.shapings)
    scored: list[Scored] = []
    held: dict[str, list[float]] = {}
    with progress_of(len(texts), "scoring") as advance:
        for start in range(0, len(texts), batch_size):
            batch = [_trajectory(text, rows[text.row]) for text in texts[start : start + batch_size]]
            computed = rewards.compute(batch, with_ids=False)
            scores = shaper.shape(computed.rewards, batch)
            for reward, score in zip(computed.rewards, scores, strict=True):
                scored.append(Scored(None if score is None else score.total, reward.parts))
            for name, hits in computed.cached.items():
                held.setdefault(name, []).extend(hits)
            advance(len(batch))
    return scored, held


def _require_scorable(rewards: Rewards, rows: LoadedRows) -> None:
    for function, name in zip(rewards.functions, rewards.names, strict=True):
        if "completion_ids" in required_arguments(function):
            raise InputError(f"reward {name!r} takes completion_ids, which the rows of a set do not have. Omit it")
    rewards.require_columns([name for name in rows.dataset.column_names if name not in _OF_THE_CALL])


def _trajectory(text: ScoredText, row: Mapping[str, Any]) -> Trajectory:
    columns = {name: value for name, value in row.items() if name not in _OF_THE_CALL}
    return Trajectory({**columns, "prompt": text.prompt}, [], Completion([], [], True), text.completion)


# --- what is written ---------------------------------------------------------------------------------------------


def _fields(texts: Sequence[ScoredText], scored: Sequence[Scored]) -> dict[str, Any]:
    """Return the columns that are added to one row.

    They are `score` and `rewards`, of pairs with `_chosen` and `_rejected`, and of several completions in lists.
    """
    if texts[0].role == COMPLETIONS:
        return {"scores": [each.score for each in scored], "rewards": [each.rewards for each in scored]}
    if texts[0].role in ("chosen", "rejected"):
        chosen, rejected = scored
        return {
            "score_chosen": chosen.score,
            "score_rejected": rejected.score,
            "rewards_chosen": chosen.rewards,
            "rewards_rejected": rejected.rewards,
        }
    return {"score": scored[0].score, "rewards": scored[0].rewards}


def _by_row(texts: Sequence[ScoredText], scored: Sequence[Scored]) -> dict[int, list[tuple[ScoredText, Scored]]]:
    found: dict[int, list[tuple[ScoredText, Scored]]] = {}
    for text, each in zip(texts, scored, strict=True):
        found.setdefault(text.row, []).append((text, each))
    return found


def _kept_rows(texts: Sequence[ScoredText], scored: Sequence[Scored], arguments: ScoreArguments) -> list[int]:
    """Return the rows whose scores all are within the limits; an unscored completion is within none."""
    if arguments.min_score is None and arguments.max_score is None:
        return sorted({text.row for text in texts})
    low = -math.inf if arguments.min_score is None else arguments.min_score
    high = math.inf if arguments.max_score is None else arguments.max_score
    out = {t.row for t, each in zip(texts, scored, strict=True) if each.score is None or not low <= each.score <= high}
    return sorted({text.row for text in texts} - out)


def _write(
    output: Path, rows: LoadedRows, texts: Sequence[ScoredText], scored: Sequence[Scored], kept: Sequence[int]
) -> None:
    of_row, columns = _by_row(texts, scored), rows.by_row()
    scratch = output.with_name(f"{output.name}.{os.getpid()}.part")
    try:
        write_json_lines(scratch, ({**columns[row], **_fields(*zip(*of_row[row], strict=True))} for row in kept))
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(scratch, output)
    finally:
        scratch.unlink(missing_ok=True)


def _free_output(output: str | None) -> Path | None:
    """Return the path of the output file. Raises `InputError` for one that exists or cannot be written."""
    if output is None:
        return None
    path = Path(output).expanduser()
    if path.suffix != ".jsonl":
        raise InputError(
            f"output={output} is invalid: the rows are written as JSON Lines. Name a file that ends in .jsonl"
        )
    if path.exists():
        raise InputError(f"output={output} is invalid: the file exists. Name another one, or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        path.unlink()
    except OSError as error:
        raise InputError(
            f"output={output} is invalid: it cannot be written ({error.strerror}). Name another"
        ) from error
    return path


def _require_free_columns(rows: LoadedRows, texts: Sequence[ScoredText]) -> None:
    added = _fields(*zip(*((text, Scored(None, {})) for text in texts if text.row == texts[0].row), strict=True))
    if taken := sorted(set(added) & set(rows.dataset.column_names)):
        raise InputError(
            f"{rows.source}: the rows have {', '.join(taken)} already, which this command writes. Rename the columns"
        )


def _report(
    texts: Sequence[ScoredText],
    scored: Sequence[Scored],
    held: Mapping[str, Sequence[float]],
    rows: int,
    kept: int,
    output: Path | None,
) -> dict[str, float]:
    """Print and return how many rows there are, the mean score of each role, and how much the cache held."""
    by_role: dict[str, list[float]] = {}
    for text, each in zip(texts, scored, strict=True):
        if each.score is not None:
            by_role.setdefault(text.role, []).append(each.score)
    numbers: dict[str, float] = {"rows": rows, "completions": len(texts)}
    numbers["unscored"] = sum(each.score is None for each in scored)
    for role, scores in by_role.items():
        numbers |= {f"score/{role}/mean": statistics.fmean(scores), f"score/{role}/std": statistics.pstdev(scores)}
    if pairs := [(a.score, b.score) for a, b in _pairs(texts, scored) if a.score is not None and b.score is not None]:
        numbers["chosen_above_rejected"] = sum(a > b for a, b in pairs) / len(pairs)
    numbers |= {f"cached/{name}": statistics.fmean(hits) for name, hits in held.items()}
    if output is not None:
        numbers["rows_written"] = kept
    for name, value in numbers.items():
        say(f"{name:<32} {value:.4g}" if isinstance(value, float) else f"{name:<32} {value:,}")
    if output is not None:
        say(f"saved to {output}")
        if not kept:
            logger.warning(
                "%s has 0 of %d rows: none has all of its scores within min_score and max_score. Choose other limits by"
                " the means above",
                output,
                rows,
            )
    return numbers


def _pairs(texts: Sequence[ScoredText], scored: Sequence[Scored]) -> list[tuple[Scored, Scored]]:
    found = [[each for _, each in row] for row in _by_row(texts, scored).values() if row[0][0].role == "chosen"]
    return [(chosen, rejected) for chosen, rejected in found]
