"""From data set rows to trajectories: one prompt, one completion, the episode ends."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_rlhf.rollout.engines import Engine
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.types import Trajectory


def collect(
    engine: Engine, rows: Sequence[Mapping[str, Any]], tokenizer, sampling: Sampling, seeds: Sequence[int]
) -> list[Trajectory]:
    """Sample one completion for each row; a row has `prompt`, `prompt_ids` and any other columns."""
    completions = engine.generate([row["prompt_ids"] for row in rows], sampling, seeds)
    # One by one: transformers decodes an empty batch, which is a rank's share of few prompts, to one empty text.
    return [
        Trajectory(
            row=row,
            prompt_ids=row["prompt_ids"],
            completion=completion,
            text=tokenizer.decode(completion.ids, skip_special_tokens=True),
        )
        for row, completion in zip(rows, completions, strict=True)
    ]
