"""Conversion of dataset rows to trajectories: one prompt, one completion, the episode ends."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_rlhf.data.turns import prefill
from hf_rlhf.rollout.engines import Engine
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.types import Completion, TokenSupport, Trajectory


def collect(
    engine: Engine,
    rows: Sequence[Mapping[str, Any]],
    tokenizer,
    sampling: Sampling,
    seeds: Sequence[int],
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[Trajectory]:
    """Sample one completion for each row; a row has `prompt`, `prompt_ids` and any other columns.

    `chat_template_kwargs` are those that the prompts were rendered with.
    """
    completions = engine.generate([row["prompt_ids"] for row in rows], sampling, seeds)
    for completion in completions:
        if completion.support is not None:
            completion.support = TokenSupport.of(completion.support)
    # One by one: transformers decodes an empty batch, which is a rank's share of few prompts, to one empty text.
    return [
        trajectory_of(row, completion, tokenizer, chat_template_kwargs, sampling)
        for row, completion in zip(rows, completions, strict=True)
    ]


def trajectory_of(
    row: Mapping[str, Any],
    completion: Completion,
    tokenizer,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    sampling: Sampling | None = None,
) -> Trajectory:
    """Return a row with its completion.

    The text is the whole answer: what the generation prompt began, and what was sampled. The mask is False on the
    tokens that `sampling` took without a draw.
    """
    begun = prefill(row, tokenizer, chat_template_kwargs)
    text = begun + tokenizer.decode(completion.ids, skip_special_tokens=True)
    mask = None
    if sampling is not None and sampling.first_greedy_tokens:
        mask = sampling.chosen(len(completion.ids))
    return Trajectory(row=row, prompt_ids=row["prompt_ids"], completion=completion, text=text, mask=mask)
