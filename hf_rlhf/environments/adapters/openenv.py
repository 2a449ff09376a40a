"""OpenEnv environments as text: behind a server, or in this process."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_rlhf.environments.base import Turn
from hf_rlhf.environments.gym_text import with_text
from hf_rlhf.errors import InputError
from hf_rlhf.types import Message, Prompt


class OpenEnvText:
    """An episode of an OpenEnv environment (`pip install openenv-core`).

    Args:
        make: makes a client for each episode, such as `partial(EchoEnv, base_url="http://localhost:8000")`, or an
            `Environment` of OpenEnv itself. An async client is used by its `sync()`.
        render: makes text of an observation.
        parse: makes an action of what the policy wrote, or returns None: then the environment takes no step, and the
            policy reads `invalid`.
        invalid: what the policy reads then.
        penalty: subtracted from the reward of such a turn, which has `info["invalid"] == 1`.
        columns: of the row, given to `reset` besides a seed of the episode's own chance.
        separator: between the row's prompt and the first observation.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        render: Callable[[Any], str],
        parse: Callable[[str], Any],
        *,
        invalid: str = "That is no action. Try again.",
        penalty: float = 0.1,
        columns: Sequence[str] = (),
        separator: str = "\n",
    ):
        if penalty < 0:
            raise InputError(f"penalty={penalty} is invalid: it must be 0 or above, since it is subtracted.")
        self.make, self.render, self.parse = make, render, parse
        self.invalid, self.penalty, self.columns, self.separator = invalid, penalty, tuple(columns), separator
        self._env: Any = None

    def reset(self, row: Mapping[str, Any], rng: random.Random) -> Prompt:
        """Make the client, and return the row's prompt with the first observation."""
        if missing := [name for name in self.columns if name not in row]:
            raise InputError(f"columns={', '.join(missing)} is invalid: the dataset has no such column. Omit it.")
        env = self.make()
        self._env = env.sync() if hasattr(env, "sync") else env
        found = self._env.reset(seed=rng.getrandbits(31), **{name: row[name] for name in self.columns})
        return with_text(row["prompt"], self.render(_parts(found)[0]), self.separator)

    def step(self, completion: str) -> Turn:
        """Take the action that the policy wrote."""
        if self._env is None:
            raise RuntimeError("the episode is over, or was not begun by reset")
        action = self.parse(completion)
        if action is None:
            return Turn(({"role": "user", "content": self.invalid},), reward=0.0 - self.penalty, info={"invalid": 1.0})
        observation, reward, done = _parts(self._env.step(action))
        if done:
            self._close()
        said: tuple[Message, ...] = () if done else ({"role": "user", "content": self.render(observation)},)
        return Turn(said, reward=float(reward or 0.0), terminated=done, info={"invalid": 0.0})

    def _close(self) -> None:
        env, self._env = self._env, None
        if hasattr(env, "close"):
            env.close()

    def __del__(self):
        """Close the connection of an episode that a limit ended."""
        if getattr(self, "_env", None) is not None:
            self._close()


def _parts(found: Any) -> tuple[Any, float | None, bool]:
    """Return observation, reward and end of a client's result, or of what an environment itself returns."""
    return getattr(found, "observation", found), found.reward, bool(found.done)
