"""Episodes of environments: all that are live get their completions together, and finished ones leave the batch."""

import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from hf_rlhf.data.continuations import continuation_ids
from hf_rlhf.data.tokens import row_ids
from hf_rlhf.data.turns import prefill
from hf_rlhf.distributed import global_sum
from hf_rlhf.environments.base import Env, EnvFactory, Turn
from hf_rlhf.environments.check import require_turn
from hf_rlhf.errors import InputError
from hf_rlhf.rollout.engines import Engine
from hf_rlhf.rollout.sampling import Sampling, row_seed
from hf_rlhf.types import Completion, Message, Prompt, TokenSupport, Trajectory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpisodeLimits:
    """Limits of an episode. One that they end is truncated.

    Attributes:
        max_turns: completions of the policy.
        max_tokens: tokens of the completions and of what the environment adds, together; None for no limit. An episode
            is truncated where its next completion might go beyond.
        max_failed_share: of the episodes of a call, whose environment may raise an exception. They are not learned
            from.
    """

    max_turns: int = 8
    max_tokens: int | None = None
    max_failed_share: float = 0.05


@dataclass
class _Episode:
    """One episode while it lasts: what was shown, sampled and paid so far."""

    row: Mapping[str, Any]
    env: Env
    seed: int
    prompt: Prompt = ""
    prompt_ids: list[int] = field(default_factory=list)
    begun: str = ""  # by the generation prompt, in front of each answer
    dialogue: list[Message] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    support: list[torch.Tensor] | None = None
    rewards: list[float] = field(default_factory=list)  # of the environment, by token
    turns: int = 0
    stopped: bool = False  # the last completion ended by itself
    last: Turn = Turn()
    failure: Exception | None = None

    @property
    def context(self) -> list[int]:
        return [*self.prompt_ids, *self.ids]


def collect_episodes(
    engine: Engine,
    rows: Sequence[Mapping[str, Any]],
    tokenizer,
    sampling: Sampling,
    seeds: Sequence[int],
    make_env: EnvFactory,
    limits: EpisodeLimits = EpisodeLimits(),
    chat_template_kwargs: Mapping[str, Any] | None = None,
    *,
    together: bool = False,
) -> list[Trajectory]:
    """Play one episode for each row, and return its trajectory.

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
    episodes = [
        _begin(row, make_env(), seed, tokenizer, chat_template_kwargs) for row, seed in zip(rows, seeds, strict=True)
    ]
    live = [episode for episode in episodes if episode.failure is None]
    for turn in range(limits.max_turns):
        if not (global_sum(torch.tensor(len(live))) if together else live):
            break
        draws = [episode.seed if turn == 0 else row_seed("turn", episode.seed, turn) for episode in live]
        completions = engine.generate([episode.context for episode in live], sampling, draws)
        for episode, completion in zip(live, completions, strict=True):
            _take(episode, completion, sampling, tokenizer)
            _step(episode, limits, sampling, tokenizer, chat_template_kwargs)
        live = [episode for episode in live if episode.failure is None and not episode.last.ends]
    _require_few_failures(episodes, limits)
    return [_trajectory(episode) for episode in episodes]


def _begin(
    row: Mapping[str, Any], env: Env, seed: int, tokenizer, chat_template_kwargs: Mapping[str, Any] | None
) -> _Episode:
    episode = _Episode(row, env, seed)
    try:
        prompt = env.reset(row, random.Random(row_seed("environment", seed)))
    except Exception as error:  # an author's code
        episode.failure = error
        prompt = row["prompt"]
    episode.prompt = prompt if isinstance(prompt, str) else list(prompt)
    if episode.prompt == row["prompt"]:
        episode.prompt_ids = list(row["prompt_ids"])
    else:
        settings: dict[str, Any] = {"options": row, "chat_template_kwargs": chat_template_kwargs}
        episode.prompt_ids = row_ids(episode.prompt, tokenizer, continued=True, **settings)
        if not episode.prompt_ids:
            raise InputError(f"{_name(env)}.reset returned an empty prompt: a policy needs at least one token to begin")
    begun = {**row, "prompt": episode.prompt, "prompt_ids": episode.prompt_ids}
    episode.begun = prefill(begun, tokenizer, chat_template_kwargs)
    return episode


def _take(episode: _Episode, completion: Completion, sampling: Sampling, tokenizer) -> None:
    """Append a completion to the episode."""
    count = len(completion.ids)
    if sampling.truncated and completion.support is not None:
        episode.support = [*(episode.support or []), *completion.support]
    episode.ids += completion.ids
    episode.mask += [True] * count
    episode.logprobs += completion.logprobs or [math.nan] * count
    episode.rewards += [0.0] * count
    episode.turns += 1
    episode.stopped = completion.stopped
    text = episode.begun + tokenizer.decode(completion.ids, skip_special_tokens=True)
    episode.dialogue.append({"role": "assistant", "content": text})


def _step(
    episode: _Episode,
    limits: EpisodeLimits,
    sampling: Sampling,
    tokenizer,
    chat_template_kwargs: Mapping[str, Any] | None,
) -> None:
    """Let the environment answer, and append what it says."""
    try:
        turn = episode.env.step(episode.dialogue[-1]["content"])
    except Exception as error:  # an author's code
        episode.failure = error
        return
    require_turn(turn, episode.env)
    episode.rewards[-1] += float(turn.reward)
    if not turn.ends and episode.turns >= limits.max_turns:
        turn = replace(turn, truncated=True)
    episode.last = turn
    if turn.ends:
        episode.dialogue += turn.messages
        return
    sampled = episode.ids[-1:]
    added = continuation_ids(
        episode.prompt,
        episode.dialogue,
        turn.messages,
        sampled,
        tokenizer,
        options=episode.row,
        chat_template_kwargs=chat_template_kwargs,
    )
    episode.dialogue += turn.messages
    longest = len(episode.ids) + len(added) + sampling.max_completion_length
    if limits.max_tokens is not None and longest > limits.max_tokens:
        episode.last = replace(turn, truncated=True)
        return
    episode.ids += added
    episode.mask += [False] * len(added)
    episode.logprobs += [0.0] * len(added)
    episode.rewards += [0.0] * len(added)
    if episode.support is not None:
        episode.support += [torch.tensor([token], dtype=torch.int32) for token in added]


def _trajectory(episode: _Episode) -> Trajectory:
    known = not any(map(math.isnan, episode.logprobs))
    support = None if episode.support is None else TokenSupport.of(episode.support)
    row = {**episode.row, "prompt": episode.prompt, "prompt_ids": episode.prompt_ids}
    failed = episode.failure is not None
    return Trajectory(
        row=episode.row if episode.prompt == episode.row["prompt"] else row,
        prompt_ids=episode.prompt_ids,
        completion=Completion(episode.ids, episode.logprobs if known else [], episode.stopped, support),
        text=_last_answer(episode),
        mask=[False] * len(episode.ids) if failed else (None if all(episode.mask) else episode.mask),
        messages=list(episode.dialogue),
        env_rewards=None if failed else torch.tensor(episode.rewards, dtype=torch.float64),
        truncated=episode.last.truncated,
        info={**episode.last.info, "turns": float(episode.turns)},
    )


def _last_answer(episode: _Episode) -> str:
    answers = [message["content"] for message in episode.dialogue if message["role"] == "assistant"]
    return answers[-1] if answers else ""


def _require_few_failures(episodes: Sequence[_Episode], limits: EpisodeLimits) -> None:
    failed = [episode for episode in episodes if episode.failure is not None]
    if not failed:
        return
    first = failed[0]
    what = f"{len(failed)} of {len(episodes)} episodes of {_name(first.env)} raised an exception"
    if len(failed) > limits.max_failed_share * len(episodes):
        raise InputError(
            f"{what}, the first of them {type(first.failure).__name__}: {first.failure}\n  prompt:"
            f" {str(first.prompt)[:300]!r}\n  said last: {_last_answer(first)[:300]!r}"
        ) from first.failure
    logger.warning("%s; they are not learned from. The first: %s", what, first.failure)


def _name(env: Env) -> str:
    return type(env).__name__
