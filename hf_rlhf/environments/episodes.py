"""Episodes of environments: all that are live get their completions together, and finished ones leave the batch."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_rlhf.distributed import global_sum
from hf_rlhf.environments.base import EnvFactory, Turn
from hf_rlhf.environments.episode import (
    Episode,
    EpisodeLimits,
    EpisodeSettings,
    begin,
    failures_in_words,
    follow,
    take,
    trajectory_of_episode,
)
from hf_rlhf.environments.tool_calls import calls_by_tokenizer
from hf_rlhf.errors import InputError
from hf_rlhf.rewards.calls import takes_by_name
from hf_rlhf.rollout.engines import Engine
from hf_rlhf.rollout.sampling import Sampling, row_seed
from hf_rlhf.types import Trajectory

logger = logging.getLogger(__name__)

DEFAULT_LIMITS = EpisodeLimits()


def collect_episodes(
    engine: Engine,
    rows: Sequence[Mapping[str, Any]],
    tokenizer,
    sampling: Sampling,
    seeds: Sequence[int],
    make_env: EnvFactory,
    limits: EpisodeLimits = DEFAULT_LIMITS,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    *,
    together: bool = False,
) -> list[Trajectory]:
    """Return the trajectory of one episode for each row.

    Its completion holds all tokens behind the prompt, those of the environment with the mask False; `text` is what the
    policy wrote last, and `messages` the whole dialogue behind the prompt. An episode depends on its row and its seed
    alone.

    Args:
        engine: samples completions of all live episodes at once.
        rows: with `prompt`, `prompt_ids` and any other columns.
        tokenizer: of the policy.
        sampling: of each completion; `max_completion_length` is that of one turn.
        seeds: one a row. The first completion is drawn by it, as `collect` does.
        make_env: makes an environment for each episode.
        limits: see `EpisodeLimits`.
        chat_template_kwargs: those that the prompts were rendered with.
        together: every rank makes the same number of calls of the engine, as under FSDP.

    Raises `InputError` for an environment that answers with what is no `Turn`, and where more than
    `limits.max_failed_share` of the episodes raised an exception.
    """
    settings = EpisodeSettings(tokenizer, sampling, limits, chat_template_kwargs)
    episodes = [begin(row, make_env(), seed, settings) for row, seed in zip(rows, seeds, strict=True)]
    live = [episode for episode in episodes if episode.live]
    for turn in range(limits.max_turns):
        if not (global_sum(torch.tensor(len(live))) if together else live):
            break
        draws = [episode.seed if turn == 0 else row_seed("turn", episode.seed, turn) for episode in live]
        completions = engine.generate([episode.context for episode in live], sampling, draws)
        for episode, completion in zip(live, completions, strict=True):
            take(episode, completion, settings)
        step(live, settings)
        live = [episode for episode in live if episode.live]
    _require_few_failures(episodes, limits)
    return [trajectory_of_episode(episode) for episode in episodes]


def step(episodes: Sequence[Episode], settings: EpisodeSettings) -> None:
    """Let the environments answer the last completions: one by one, or together where their class has `step_all`.

    An exception of `step_all` is the failure of every episode that it was called for.
    """
    together: dict[type, list[Episode]] = {}
    for episode in episodes:
        if hasattr(type(episode.env), "step_all"):
            together.setdefault(type(episode.env), []).append(episode)
        else:
            _step_alone(episode, settings)
    for kind, members in together.items():
        _step_together(kind, members, settings)


def _step_alone(episode: Episode, settings: EpisodeSettings) -> None:
    said: Any = episode.env.step
    try:
        if takes_by_name(said, "tool_calls"):
            prefix = episode.context[: len(episode.context) - len(episode.last_ids)]
            calls = calls_by_tokenizer(settings.tokenizer, prefix, episode.last_ids, episode.row.get("tools"))
            turn = said(episode.answer, tool_calls=calls)
        else:
            turn = said(episode.answer)
    except Exception as error:  # an author's code
        episode.failure = error
        return
    follow(episode, turn, settings)


def _step_together(kind: Any, episodes: Sequence[Episode], settings: EpisodeSettings) -> None:
    try:
        turns: list[Turn] = list(
            kind.step_all([episode.env for episode in episodes], [episode.answer for episode in episodes])
        )
        if len(turns) != len(episodes):
            raise ValueError(f"step_all returned {len(turns)} turns for {len(episodes)} environments")
    except Exception as error:  # an author's code
        for episode in episodes:
            episode.failure = error
        return
    for episode, turn in zip(episodes, turns, strict=True):
        follow(episode, turn, settings)


def _require_few_failures(episodes: Sequence[Episode], limits: EpisodeLimits) -> None:
    failed = [episode for episode in episodes if episode.failure is not None]
    if not failed:
        return
    what = failures_in_words(episodes)
    if len(failed) > limits.max_failed_share * len(episodes):
        raise InputError(what) from failed[0].failure
    logger.warning("%s\nThey are not learned from.", what)
