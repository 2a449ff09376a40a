"""One episode while it lasts: what was shown, sampled and paid, as tokens that are never made again from text."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from hf_rlhf.data.continuations import continuation_ids
from hf_rlhf.data.tokens import RefusedByTemplate, row_ids
from hf_rlhf.data.turns import prefill
from hf_rlhf.environments.base import Env, Turn
from hf_rlhf.environments.check import require_end, require_turn
from hf_rlhf.environments.tool_calls import tool_schemas
from hf_rlhf.errors import InputError
from hf_rlhf.rollout.sampling import Sampling, row_seed
from hf_rlhf.types import Completion, Message, Prompt, TokenSupport, Trajectory


@dataclass(frozen=True)
class EpisodeLimits:
    """Limits of an episode. One that they end is truncated.

    Attributes:
        max_turns: completions of the policy.
        max_tokens: tokens of the completions and of what the environment adds, together; None for no limit. An episode
            is truncated where its next completion might go beyond.
        max_failed_share: of the episodes of a call, whose environment may raise an exception. They are not learned
            from.
        max_prompt_tokens: of a prompt that an environment makes, or that its tools are shown in. A longer one is an
            error.
    """

    max_turns: int = 8
    max_tokens: int | None = None
    max_failed_share: float = 0.05
    max_prompt_tokens: int | None = None


@dataclass(frozen=True)
class EpisodeSettings:
    """Settings that all episodes of a call share.

    Attributes:
        tokenizer: of the policy.
        sampling: of each completion; `max_completion_length` is that of one turn.
        limits: see `EpisodeLimits`.
        chat_template_kwargs: those that the prompts were rendered with.
    """

    tokenizer: Any
    sampling: Sampling
    limits: EpisodeLimits = EpisodeLimits()
    chat_template_kwargs: Mapping[str, Any] | None = None


@dataclass
class Episode:
    """One episode while it lasts."""

    row: Mapping[str, Any]
    env: Env
    seed: int
    prompt: Prompt = ""
    prompt_ids: list[int] = field(default_factory=list)
    begun: str = ""  # by the generation prompt, in front of each answer
    dialogue: list[Message] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)  # of each completion among the ids
    logprobs: list[float] = field(default_factory=list)
    support: list[torch.Tensor] | None = None
    rewards: list[float] = field(default_factory=list)  # of the environment, by token
    last_ids: list[int] = field(default_factory=list)  # of the last completion
    turns: int = 0
    stopped: bool = False  # the last completion ended by itself
    last: Turn = Turn()
    failure: Exception | None = None

    @property
    def context(self) -> list[int]:
        """The ids that the next completion continues."""
        return [*self.prompt_ids, *self.ids]

    @property
    def live(self) -> bool:
        """True if the policy says something next."""
        return self.failure is None and not self.last.ends

    def pay(self, reward: float) -> None:
        """Add a reward to the last token that the policy chose; to the last of all where it chose none."""
        self.rewards[max((t for t, chosen in enumerate(self.mask) if chosen), default=-1)] += reward

    @property
    def answer(self) -> str:
        """The text that the policy wrote last."""
        answers = [message["content"] for message in self.dialogue if message["role"] == "assistant"]
        return answers[-1] if answers else ""


def begin(row: Mapping[str, Any], env: Env, seed: int, settings: EpisodeSettings) -> Episode:
    """Return the episode of a row before its first completion. Its environment's exception is its `failure`.

    Raises `InputError` for a prompt that gives the policy nothing to continue.
    """
    episode = Episode(row, env, seed)
    try:
        prompt = env.reset(row, random.Random(row_seed("environment", seed)))
    except Exception as error:  # an author's code
        episode.failure = error
        prompt = row["prompt"]
    episode.prompt = prompt if isinstance(prompt, str) else list(prompt)
    tools = tool_schemas(getattr(env, "tools", None) or ())
    if tools:
        episode.row = {**row, "tools": tools}
    if episode.prompt == row["prompt"] and not tools:
        episode.prompt_ids = list(row["prompt_ids"])
    else:
        episode.prompt_ids = _prompt_ids(episode, settings)
    if tools:
        _require_shown_tools(episode, settings)
    begun = {**episode.row, "prompt": episode.prompt, "prompt_ids": episode.prompt_ids}
    episode.begun = prefill(begun, settings.tokenizer, settings.chat_template_kwargs)
    return episode


def _prompt_ids(episode: Episode, settings: EpisodeSettings) -> list[int]:
    """Return the ids of a prompt that is not the dataset's. Raises `InputError` for one that nothing can follow."""
    name, longest = name_of(episode.env), settings.limits.max_prompt_tokens
    how: dict[str, Any] = {"options": episode.row, "chat_template_kwargs": settings.chat_template_kwargs}
    try:
        ids = row_ids(episode.prompt, settings.tokenizer, continued=True, **how)
    except RefusedByTemplate as refusal:
        raise InputError(
            f"environment={name} is invalid: the chat template refuses its prompt: {refusal.__cause__}. Let reset"
            " return other messages, or set --chat_template_path."
        ) from refusal
    if not ids:
        raise InputError(f"{name}.reset returned an empty prompt: a policy needs at least one token to begin")
    if longest is not None and len(ids) > longest:
        raise InputError(
            f"max_prompt_length={longest} is invalid: a prompt of the environment {name} has {len(ids)} tokens, with"
            " its tools if it has any. Raise it, or let reset return less."
        )
    return ids


def take(episode: Episode, completion: Completion, settings: EpisodeSettings) -> None:
    """Append a completion to the episode."""
    count = len(completion.ids)
    if settings.sampling.truncated and completion.support is not None:
        episode.support = [*(episode.support or []), *completion.support]
    episode.spans.append((len(episode.ids), len(episode.ids) + count))
    episode.ids += completion.ids
    episode.last_ids = completion.ids
    episode.mask += settings.sampling.chosen(count)
    episode.logprobs += completion.logprobs or [math.nan] * count
    episode.rewards += [0.0] * count
    episode.turns += 1
    episode.stopped = completion.stopped
    text = episode.begun + settings.tokenizer.decode(completion.ids, skip_special_tokens=True)
    episode.dialogue.append({"role": "assistant", "content": text})


def follow(episode: Episode, turn: Turn, settings: EpisodeSettings) -> None:
    """Append what the environment answers to the last completion.

    Raises `InputError` for what is no `Turn`, and as `continuation_ids` does.
    """
    limits = settings.limits
    require_turn(turn, episode.env)
    episode.pay(float(turn.reward))
    episode.last = turn
    if not turn.ends and episode.turns >= limits.max_turns:
        turn = end_at_limit(episode)
    if turn.terminated or not turn.messages:
        episode.dialogue += turn.messages
        return
    added = continuation_ids(
        episode.prompt,
        episode.dialogue,
        turn.messages,
        episode.ids[-1:],
        settings.tokenizer,
        options=episode.row,
        chat_template_kwargs=settings.chat_template_kwargs,
    )
    episode.dialogue += turn.messages
    longest = len(episode.ids) + len(added)
    if limits.max_tokens is not None and longest + settings.sampling.max_completion_length > limits.max_tokens:
        if not turn.ends:
            turn = end_at_limit(episode)
        if turn.terminated or longest > limits.max_tokens:
            return
    episode.ids += added  # of a truncated episode too: the value beyond it is that of the state behind them
    episode.mask += [False] * len(added)
    episode.logprobs += [0.0] * len(added)
    episode.rewards += [0.0] * len(added)
    if episode.support is not None:
        episode.support += [torch.tensor([token], dtype=torch.int32) for token in added]


def end_at_limit(episode: Episode) -> Turn:
    """End an episode by a limit of the run, and return its last turn; an environment with `at_limit` pays for it.

    Raises `InputError` where `at_limit` returns no `Turn` that ends the episode. Its exception is the `failure`.
    """
    env: Any = episode.env
    end = Turn(truncated=True)
    if hasattr(env, "at_limit"):
        try:
            end = env.at_limit()
        except Exception as error:  # an author's code
            episode.failure = error
        else:
            require_end(end, env)
    episode.pay(float(end.reward))
    info = {**episode.last.info, **end.info}
    episode.last = replace(episode.last, terminated=end.terminated, truncated=end.truncated, info=info)
    return episode.last


def trajectory_of_episode(episode: Episode) -> Trajectory:
    """Return what is learned from an episode; nothing of one that failed."""
    known = not any(map(math.isnan, episode.logprobs))
    support = None if episode.support is None else TokenSupport.of(episode.support)
    row = {**episode.row, "prompt": episode.prompt, "prompt_ids": episode.prompt_ids}
    failed = episode.failure is not None
    return Trajectory(
        row=episode.row if episode.prompt == episode.row["prompt"] else row,
        prompt_ids=episode.prompt_ids,
        completion=Completion(episode.ids, episode.logprobs if known else [], episode.stopped, support),
        text=episode.answer,
        mask=[False] * len(episode.ids) if failed else (None if all(episode.mask) else episode.mask),
        messages=list(episode.dialogue),
        spans=list(episode.spans),
        env_rewards=None if failed else torch.tensor(episode.rewards, dtype=torch.float64),
        truncated=episode.last.truncated,
        info={**episode.last.info, "turns": float(episode.turns), **_failure(episode)},
    )


def _failure(episode: Episode) -> dict[str, str]:
    return {} if episode.failure is None else {"failure": failures_in_words([episode])}


def name_of(env: Env) -> str:
    """Return the name of an environment for messages."""
    return type(env).__name__


def _require_shown_tools(episode: Episode, settings: EpisodeSettings) -> None:
    """Raise `InputError` for tools that the policy does not see."""
    reason, fix = "", "Give the prompts as messages"
    how: dict[str, Any] = {
        "options": {**episode.row, "tools": None},
        "chat_template_kwargs": settings.chat_template_kwargs,
    }
    if isinstance(episode.prompt, str):
        reason = "the prompt is plain text, which no chat template puts tools into"
    elif episode.prompt_ids == row_ids(episode.prompt, settings.tokenizer, continued=True, **how):
        reason, fix = "the chat template does not write them", "Set --chat_template_path to one that takes tools"
    if reason:
        raise InputError(f"environment={name_of(episode.env)} is invalid: it has tools, and {reason}. {fix}.")


def failures_in_words(episodes: Sequence[Episode]) -> str:
    """Return how many episodes failed, and of the first what was said."""
    failed = [episode for episode in episodes if episode.failure is not None]
    first = failed[0]
    return (
        f"{len(failed)} of {len(episodes)} episodes of {name_of(first.env)} raised an exception, the first of them"
        f" {type(first.failure).__name__}: {first.failure}\n  prompt: {str(first.prompt)[:300]!r}\n  said last:"
        f" {first.answer[:300]!r}"
    )
