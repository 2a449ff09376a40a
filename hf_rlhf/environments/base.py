"""Text generation as an RL problem: an episode, its turns, and how it ends.

State: the tokens so far. Action: the next token that the policy samples. Reward: what the environment and the reward
functions pay, on the last token of the completion that they answer. End: the environment says so (`terminated`, the
value beyond it is 0), or a limit does (`truncated`, the value beyond it is that of the last state).

An author writes one episode. The trainer asks for completions of all live episodes at once.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from hf_rlhf.types import Message, Prompt


@dataclass(frozen=True, slots=True)
class Turn:
    """The answer of an environment to one completion.

    Attributes:
        messages: shown to the policy next, and never trained on. To a prompt of plain text, their contents are appended
            as they are.
        reward: paid on the last token of the completion that this answers.
        terminated: a real end; the value beyond it is 0.
        truncated: the end by a limit; the value beyond it is V(s).
        info: numbers and texts to log.
    """

    messages: tuple[Message, ...] = ()
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def ends(self) -> bool:
        """True if the episode is over."""
        return self.terminated or self.truncated


class Env(Protocol):
    """One object is one episode.

    A class may have more:

    - `step_all(envs, completions) -> list[Turn]`, a class method, answers all live episodes at once, instead of `step`.
      An exception is then the failure of all of them.
    - `tools`, a list of functions or JSON schemas, which the chat template shows to the policy.
    - `at_limit() -> Turn`, for an environment that pays at the end: called where a limit of the run ends the episode.
      It ends the episode and pays: terminated if no more would ever be paid, truncated otherwise.
    - a parameter `tool_calls` of `step`: the calls that the tokenizer's own parser read off the completion, None where
      it has none or found none.
    """

    def reset(self, row: Mapping[str, Any], rng: random.Random) -> Prompt:
        """Begin the episode of a dataset's row; return the prompt, as messages or as text.

        All of its chance comes from `rng`, so that an episode does not depend on the batch or the rank it is in.
        """
        ...

    def step(self, completion: str) -> Turn:
        """Return the answer to a completion of the policy."""
        ...


EnvFactory = Callable[[], Env]


class SingleTurn:
    """The environment of plain RLHF: the row's prompt, one completion, the end."""

    def reset(self, row: Mapping[str, Any], rng: random.Random) -> Prompt:
        """Return the prompt as the dataset gave it."""
        return row["prompt"]

    def step(self, completion: str) -> Turn:
        """End the episode."""
        return Turn(terminated=True)
