"""Segments of a game: pieces of a few turns that people compare, and that a reward model pays (Christiano et al. 2017).

An episode is cut after every `turns` turns, and where the game ends. A segment is shown as text: to people, to whom it
is a completion of the row's prompt, and to the reward model that is trained on their preferences.
"""

import bisect
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_rlhf.environments.base import Env, EnvFactory, Turn
from hf_rlhf.environments.episode import EpisodeLimits
from hf_rlhf.environments.episodes import collect_episodes
from hf_rlhf.errors import InputError
from hf_rlhf.rewards.contract import RewardFunction, Rewards
from hf_rlhf.rollout.engines import Engine
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.types import Completion, Prompt, Trajectory

TRUE_RETURN = "true_return"
"""Name in `info` of what the game itself has paid in the episode so far, which is never trained on."""

Render = Callable[[Sequence[tuple[str, str]], str, bool], str]
"""Makes text of a segment: of pairs of what was shown and what was done, what was shown then, and whether it ended."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive turns of an episode.

    Attributes:
        prompt: of the row, without what the game showed.
        text: what people and reward models read; behind a text prompt it begins with a new line.
        true_return: the sum of what the game paid.
    """

    prompt: Prompt
    text: str
    true_return: float

    @property
    def completion(self) -> Any:
        """The segment as a completion of its prompt: text behind text, else a message of the assistant."""
        return self.text if isinstance(self.prompt, str) else [{"role": "assistant", "content": self.text}]


def render_segment(turns: Sequence[tuple[str, str]], shown: str, ended: bool) -> str:
    """Return one line for what was shown, one for what was done, and so on, with `(end)` where the game ended."""
    lines = [line for before, done in turns for line in (before, f"> {done.strip()}")]
    return "\n".join(filter(None, [*lines, shown, "(end)" if ended else ""]))


class Segmented:
    """An episode of another environment in segments. What that environment pays is hidden from the training.

    Its sum is `true_return` in `info`, which is logged. With a `reward`, each segment is paid what the reward gives it,
    on the turn that it ends with. The turns behind the last cut of an episode that a limit ends are paid nothing,
    unless the game has `at_limit`, which ends the last segment.

    Args:
        make_env: of the game. It has no tools.
        turns: of a segment.
        reward: by TRL's contract, such as a `LearnedReward`; a prompt and a segment are its prompt and completion.
        render: makes text of a segment; the same one for people and for training.
    """

    def __init__(
        self,
        make_env: EnvFactory,
        *,
        turns: int = 4,
        reward: RewardFunction | None = None,
        render: Render = render_segment,
    ):
        if turns < 1:
            raise InputError(f"turns={turns} is invalid: a segment has at least 1. Raise it.")
        self.game: Env = make_env()
        if getattr(self.game, "tools", None):
            raise InputError(
                f"environment={type(self.game).__name__} is invalid: segments are of games without tools, and it has"
                " some. Choose another."
            )
        self.turns, self.render = turns, render
        self.reward = None if reward is None else Rewards([reward])
        self.required_columns: Sequence[str] = getattr(self.game, "required_columns", ())
        self.segments: list[Segment] = []
        self._open: list[tuple[str, str]] = []  # turns of the segment that has not ended
        self._paid: list[float] = []  # by the game, for each of them
        if hasattr(self.game, "at_limit"):
            self.at_limit = self._end_at_limit

    def reset(self, row: Mapping[str, Any], rng: random.Random) -> Prompt:
        """Begin the game."""
        prompt = self.game.reset(row, rng)
        self.row, self.true_return = row, 0.0
        self.segments, self._open, self._paid = [], [], []
        self._shown = _text(prompt).removeprefix(_text(row["prompt"])).strip()
        return prompt

    def step(self, completion: str) -> Turn:
        """Let the game answer."""
        return self.step_all([self], [completion])[0]

    @classmethod
    def step_all(cls, envs: Sequence["Segmented"], completions: Sequence[str]) -> list[Turn]:
        """Let all games answer, and pay the segments that end, all of them in one call of the reward."""
        turns = _answers([env.game for env in envs], completions)
        ended = [env._note(done, turn) for env, done, turn in zip(envs, completions, turns, strict=True)]
        paid = iter(_pay([env for env, is_end in zip(envs, ended, strict=True) if is_end]))
        return [
            replace(turn, reward=next(paid) if is_end else 0.0, info={**turn.info, TRUE_RETURN: env.true_return})
            for env, turn, is_end in zip(envs, turns, ended, strict=True)
        ]

    def _note(self, completion: str, turn: Turn) -> bool:
        """Take a turn; return whether it ends a segment, which is then the last of `segments`."""
        self._open.append((self._shown, completion))
        self._paid.append(turn.reward)
        self.true_return += turn.reward
        self._shown = "\n".join(message["content"] for message in turn.messages)
        if len(self._open) < self.turns and not turn.ends:
            return False
        self._end_segment(ended=turn.terminated)
        return True

    def _end_segment(self, *, ended: bool) -> None:
        prompt, text = self.row["prompt"], self.render(self._open, self._shown, ended)
        text = "\n" + text if isinstance(prompt, str) else text
        self.segments.append(Segment(prompt, text, math.fsum(self._paid)))
        self._open, self._paid = [], []

    def _end_at_limit(self) -> Turn:
        """End the game, and the segment that is open, where a limit of the run ends the episode."""
        turn = getattr(self.game, "at_limit")()  # noqa: B009
        self.true_return += turn.reward
        paid = 0.0
        if self._open:
            self._paid[-1] += turn.reward
            self._shown = "\n".join([self._shown, *(message["content"] for message in turn.messages)]).strip()
            self._end_segment(ended=True)
            (paid,) = _pay([self])
        elif self.segments:
            self.segments[-1] = replace(self.segments[-1], true_return=self.segments[-1].true_return + turn.reward)
        return replace(turn, reward=paid, info={**turn.info, TRUE_RETURN: self.true_return})


def _answers(games: Sequence[Any], completions: Sequence[str]) -> Sequence[Turn]:
    if hasattr(type(games[0]), "step_all"):
        return type(games[0]).step_all(games, completions)
    return [game.step(completion) for game, completion in zip(games, completions, strict=True)]


def _pay(envs: Sequence[Segmented]) -> list[float]:
    """Return the rewards of the last segments of some episodes."""
    if not envs or (rewards := envs[0].reward) is None:
        return [0.0] * len(envs)
    read = [Trajectory(env.row, [], Completion([], [], True), env.segments[-1].text) for env in envs]
    return [reward.total or 0.0 for reward in rewards.compute(read, with_ids=False).rewards]


def _text(prompt: Prompt) -> str:
    """Return a prompt of text, or the last message of one of messages."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


# --- what is compared --------------------------------------------------------------------------------------------


def play_segments(
    engine: Engine,
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    sampling: Sampling,
    seeds: Sequence[int],
    make_env: EnvFactory,
    limits: EpisodeLimits,
    *,
    turns: int = 4,
    render: Render = render_segment,
) -> list[Segment]:
    """Let a policy play an episode for each row; return all segments. See `collect_episodes` and `Segmented`."""
    episodes: list[Segmented] = []

    def begin() -> Segmented:
        episodes.append(Segmented(make_env, turns=turns, render=render))
        return episodes[-1]

    collect_episodes(engine, rows, tokenizer, sampling, seeds, begin, limits)
    return [segment for episode in episodes for segment in episode.segments]


def comparisons(segments: Sequence[Segment], count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Draw different pairs of segments of the same prompt, as rows of `prompt`, `completions` and `ratings`.

    The ratings are the true returns. No export of feedback holds them: a simulated annotator reads them, and a measure.

    Raises `InputError` where there are fewer pairs.
    """
    by_prompt: dict[str, dict[str, Segment]] = {}
    for segment in segments:
        by_prompt.setdefault(str(segment.prompt), {}).setdefault(segment.text, segment)
    groups = [list(group.values()) for group in by_prompt.values()]
    sizes = [math.comb(len(group), 2) for group in groups]
    if sum(sizes) < count:
        raise InputError(
            f"comparisons={count} is invalid: the {len(segments)} segments that were played have {sum(sizes)} different"
            " pairs. Lower it, or play more episodes."
        )
    rng, starts = random.Random(seed), [0, *itertools.accumulate(sizes)]
    drawn = []
    for number in rng.sample(range(sum(sizes)), count):
        group = bisect.bisect_right(starts, number) - 1
        drawn.append([groups[group][place] for place in rng.sample(_pair(number - starts[group]), 2)])
    return [
        {
            "prompt": pair[0].prompt,
            "completions": [segment.completion for segment in pair],
            "ratings": [segment.true_return for segment in pair],
        }
        for pair in drawn
    ]


def _pair(number: int) -> tuple[int, int]:
    """Return pair `number` of (0, 1), (0, 2), (1, 2), (0, 3), ..."""
    second = (1 + math.isqrt(1 + 8 * number)) // 2
    return number - math.comb(second, 2), second
