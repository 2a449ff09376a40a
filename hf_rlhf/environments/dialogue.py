"""Dialogues of several turns with a simulated user."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hf_rlhf.environments.base import Turn
from hf_rlhf.environments.users import FunctionUser, Said, Scene, ScriptedUser, User
from hf_rlhf.errors import InputError
from hf_rlhf.types import Message, Prompt

Goal = Callable[[list[Message], Mapping[str, Any]], float | None]


class Dialogue:
    """An episode in which a user answers what the policy writes.

    Its first message is the row's prompt. The dialogue ends where the user ends it or the goal is reached (terminated),
    or after `max_turns` completions (truncated).

    Args:
        user: see `hf_rlhf.environments.users`; a list of lines is a script, and a function plays the user itself.
        reached: takes the messages, which end with the policy's, and the row. It returns the reward of a goal that was
            reached, which ends the dialogue, or None.
        max_turns: most completions of the policy.

    Example:
        `PPOTrainer(..., environment=partial(Dialogue, ["Shorter, please.", "Thanks!"]))`
    """

    def __init__(
        self,
        user: User | Sequence[str] | Callable[..., Said],
        *,
        reached: Goal | None = None,
        max_turns: int = 4,
    ):
        if max_turns < 1:
            raise InputError(f"max_turns={max_turns} is invalid: it must be at least 1.")
        self.user, self.reached, self.max_turns = _as_user(user), reached, max_turns
        self.required_columns: Sequence[str] = getattr(self.user, "required_columns", ())
        self.scene: Scene | None = None

    def reset(self, row: Mapping[str, Any], rng: random.Random) -> Prompt:
        """Begin with the row's prompt."""
        prompt = row["prompt"]
        messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        self.scene = Scene(row, messages, rng=rng)
        return prompt

    def step(self, completion: str) -> Turn:
        """Let the user answer a completion of the policy."""
        return self.step_all([self], [completion])[0]

    @classmethod
    def step_all(cls, envs: Sequence["Dialogue"], completions: Sequence[str]) -> list[Turn]:
        """Let the users of all dialogues answer at once, so that a model writes them in one batch."""
        turns: dict[int, Turn] = {}
        asked: dict[int, list[int]] = {}  # by user, the dialogues that wait for it
        for number, (env, completion) in enumerate(zip(envs, completions, strict=True)):
            if (end := env._hear(completion)) is not None:
                turns[number] = end
            else:
                asked.setdefault(id(env.user), []).append(number)
        for numbers in asked.values():
            scenes = [envs[number]._open for number in numbers]
            replies = envs[numbers[0]].user.reply(scenes)
            turns |= {number: _as_turn(said) for number, said in zip(numbers, replies, strict=True)}
        return [env._say(turns[number]) for number, env in enumerate(envs)]

    @property
    def _open(self) -> Scene:
        if self.scene is None:
            raise RuntimeError("the dialogue is over, or was not begun by reset")
        return self.scene

    def _hear(self, completion: str) -> Turn | None:
        """Take a completion. Return the end where the goal is reached."""
        scene = self._open
        scene.messages.append({"role": "assistant", "content": completion})
        scene.turn += 1
        paid = None if self.reached is None else self.reached(scene.messages, scene.row)
        return None if paid is None else Turn(reward=float(paid), terminated=True, info={"reached": 1.0})

    def _say(self, turn: Turn) -> Turn:
        """Add what the user says to the dialogue, and end it where that is due."""
        scene = self._open
        scene.messages += turn.messages
        if not turn.ends and scene.turn >= self.max_turns:
            turn = replace(turn, truncated=True)
        if turn.ends:
            self.scene = None
            if self.reached is not None:
                turn = replace(turn, info={"reached": 0.0, **turn.info})
        return turn


def _as_user(user: Any) -> User:
    if hasattr(user, "reply"):
        return user
    if callable(user):
        function: Any = user
        return FunctionUser(function)
    return ScriptedUser(user)


def _as_turn(said: Said) -> Turn:
    if isinstance(said, Turn):
        return said
    if said is None:
        return Turn(terminated=True)
    if not isinstance(said, str):
        raise InputError(
            f"user={type(said).__name__} is invalid: a user says text, a Turn, or None to end the dialogue."
        )
    return Turn(({"role": "user", "content": said},))
