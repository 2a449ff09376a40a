"""Gymnasium environments as text: an observation is rendered for the policy, and what it writes is an action."""

import random
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hf_rlhf.environments.base import Turn
from hf_rlhf.errors import InputError
from hf_rlhf.types import Message, Prompt

if TYPE_CHECKING:
    import gymnasium


class GymText:
    """An episode of a Gymnasium environment (`pip install hf-rlhf[gym]`).

    The prompt is the row's with the first observation behind it. A column `seed` of the row seeds the environment;
    without one, the episode's own chance does. `terminated` and `truncated` are those of the environment. The last
    observation of an episode that terminated is in `Turn.messages`, for rewards and people. The policy never reads it.

    Args:
        env: its id, or a function that makes it, such as one that puts wrappers around it.
        render: makes text of an observation.
        parse: makes an action of what the policy wrote, or returns None.
        fallback: the action for text that is none; by default a random one. Such a turn has `info["invalid"] == 1`.
        penalty: subtracted from the reward of such a turn.
        env_kwargs: for `gymnasium.make`, where `env` is an id.
        separator: between the row's prompt and the first observation.
    """

    def __init__(
        self,
        env: "str | Callable[[], gymnasium.Env]",
        render: Callable[[Any], str],
        parse: Callable[[str], Any],
        *,
        fallback: Any = None,
        penalty: float = 0.1,
        env_kwargs: Mapping[str, Any] | None = None,
        separator: str = "\n",
    ):
        if penalty < 0:
            raise InputError(f"penalty={penalty} is invalid: it must be 0 or above, since it is subtracted.")
        self.make = env if callable(env) else _Maker(env, dict(env_kwargs or {}))
        self.render, self.parse = render, parse
        self.fallback, self.penalty, self.separator = fallback, penalty, separator
        self._env: Any = None

    def reset(self, row: Mapping[str, Any], rng: random.Random) -> Prompt:
        """Make the environment, and return the row's prompt with the first observation."""
        self._env = self.make()
        seed = row.get("seed")
        self._seen, _ = self._env.reset(seed=rng.getrandbits(31) if seed is None else int(seed))
        self._env.action_space.seed(rng.getrandbits(31))
        self._invalid = 0
        return with_text(row["prompt"], self.render(self._seen), self.separator)

    def step(self, completion: str) -> Turn:
        """Take the action that the policy wrote."""
        if self._env is None:
            raise RuntimeError("the episode is over, or was not begun by reset")
        action = self.parse(completion)
        invalid = action is None or not self._env.action_space.contains(action)
        if invalid:
            action = self._env.action_space.sample() if self.fallback is None else self.fallback
        observation, reward, terminated, truncated, _ = self._env.step(action)
        reward = self.pay(self._seen, observation, float(reward), bool(terminated))
        self._seen = observation
        self._invalid += invalid
        if terminated or truncated:
            self._env.close()
            self._env = None
        return Turn(
            ({"role": "user", "content": self.render(observation)},),
            reward=reward - self.penalty * invalid,
            terminated=bool(terminated),
            truncated=bool(truncated) and not terminated,
            info={"invalid": float(invalid), "invalid_turns": float(self._invalid)},
        )

    def pay(self, before: Any, after: Any, reward: float, terminated: bool) -> float:
        """Return the reward of a step between two observations; by default, what the environment pays."""
        return reward


class _Maker:
    """A function that makes an environment by its id, and that another process can be given."""

    def __init__(self, env_id: str, kwargs: dict[str, Any]):
        self.env_id, self.kwargs = env_id, kwargs
        require_gymnasium()

    def __call__(self) -> "gymnasium.Env":
        import gymnasium

        try:
            return gymnasium.make(self.env_id, **self.kwargs)
        except gymnasium.error.Error as error:
            raise InputError(f"env={self.env_id} is invalid: {error}.") from error


def require_gymnasium() -> None:
    """Raise `InputError` where Gymnasium is not installed."""
    try:
        import gymnasium  # noqa: F401
    except ImportError as error:
        raise InputError("gymnasium is not installed. Run `pip install hf-rlhf[gym]`.") from error


def with_text(prompt: Prompt, text: str, separator: str = "\n") -> Prompt:
    """Return a prompt with a text behind its last message, which is the user's; for a text, behind it."""
    if isinstance(prompt, str):
        return f"{prompt}{separator}{text}" if prompt else text
    messages: list[Message] = [dict(message) for message in prompt]  # pyright: ignore[reportAssignmentType]
    if messages and messages[-1]["role"] == "user":
        messages[-1]["content"] = f"{messages[-1]['content']}{separator}{text}"
        return messages
    return [*messages, {"role": "user", "content": text}]


# --- examples ----------------------------------------------------------------------------------------------------


class FrozenLake(GymText):
    """Walk on a frozen lake from the first field to the last, around the holes: `left`, `down`, `right` or `up`.

    Args:
        is_slippery: whether a step may slip to a side.
        size: fields of a side, 4 or 8.
        progress: whether each step also pays by how many fields it comes nearer to the last one, and a hole costs
            `size`. Else the last field alone pays, 1.
        settings: of `GymText`.
    """

    def __init__(self, *, is_slippery: bool = False, size: int = 4, progress: bool = False, **settings: Any):
        if size not in (4, 8):
            raise InputError(f"size={size} is invalid: Gymnasium has maps of 4 and 8 fields a side. Take one of them.")
        kwargs = {"is_slippery": is_slippery, "map_name": f"{size}x{size}"}
        self.size, self.progress = size, progress
        super().__init__("FrozenLake-v1", self.field, parse_direction, env_kwargs=kwargs, **settings)

    def field(self, observation: Any) -> str:
        """Return the row and the column of a field, counted from 1."""
        row, column = divmod(int(observation), self.size)
        return f"row {row + 1} column {column + 1}"

    def pay(self, before: Any, after: Any, reward: float, terminated: bool) -> float:
        """Like `GymText.pay`, but with `progress` the way to the last field counts."""
        if not self.progress:
            return reward
        nearer = sum(divmod(int(after), self.size)) - sum(divmod(int(before), self.size))
        return reward + nearer - self.size * (terminated and reward == 0)


class CartPole(GymText):
    """Balance a pole on a cart: `left` or `right`. `settings` are those of `GymText`."""

    def __init__(self, **settings: Any):
        super().__init__("CartPole-v1", cart_in_words, parse_push, **settings)


def parse_direction(text: str) -> int | None:
    """Return the action of `FrozenLake` that a text names alone or last; None for none."""
    return _last_of(text, {"left": 0, "down": 1, "right": 2, "up": 3})


def parse_push(text: str) -> int | None:
    """Return the action of `CartPole` that a text names alone or last; None for none."""
    return _last_of(text, {"left": 0, "right": 1})


def cart_in_words(observation: Any) -> str:
    """Return the four numbers of `CartPole` with their names."""
    names = ("position", "velocity", "angle", "turning")
    return " ".join(f"{name} {value:.2f}" for name, value in zip(names, observation, strict=True))


def _last_of(text: str, actions: Mapping[str, int]) -> int | None:
    found = re.findall(rf"\b({'|'.join(actions)})\b", text.lower())
    return actions[found[-1]] if found else None
