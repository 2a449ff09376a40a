"""Completions sampled to a file, part by part, so that a killed run continues with the part it was at."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_rlhf.progress import progress_of
from hf_rlhf.records import append_json_lines, keep_whole_parts
from hf_rlhf.rollout.collect import collect
from hf_rlhf.rollout.engines import Engine, TransformersEngine
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.rollout.stops import stop_at_end_of_turn
from hf_rlhf.types import Model, Trajectory

BATCH_SIZE = 64
"""Completions that are sampled, and written, together."""


def sample_to_file(
    model: Model,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    sampling: Sampling,
    seeds: Sequence[int],
    file: Path,
    as_row: Callable[[Trajectory], dict[str, Any]],
    description: str,
    *,
    engine: Engine | None = None,
    batch_size: int = BATCH_SIZE,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Sample one completion for each row and append it to a file of JSON Lines.

    Parts that the file holds already are kept. The others are those of a run that was not killed.

    Args:
        model, tokenizer: that sample.
        rows: `prompt` and `prompt_ids` each.
        sampling: settings of all.
        seeds: one a row.
        file: is made, or continued.
        as_row: what is written of a completion.
        description: beside the progress.
        engine: that samples; by default a `TransformersEngine`, which shows progress by the token.
        batch_size: completions that are sampled, and written, together.
        chat_template_kwargs: those that the prompts were rendered with.
    """
    stop_at_end_of_turn(model, tokenizer, rows[0], sampling, chat_template_kwargs)
    done = keep_whole_parts(file, batch_size, len(rows))
    with progress_of((len(rows) - done) * sampling.max_completion_length, description) as advance:
        engine = engine or TransformersEngine(model, tokenizer, on_tokens=advance)
        for start in range(done, len(rows), batch_size):
            part = slice(start, start + batch_size)
            sampled = collect(engine, rows[part], tokenizer, sampling, seeds[part], chat_template_kwargs)
            append_json_lines(file, map(as_row, sampled))
