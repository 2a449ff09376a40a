"""Text generation as a Gymnasium environment whose action is the next token, for any library of reinforcement learning.

State: the tokens so far. Action: the next token. An episode is the same as in `hf_rlhf.environments.episodes`: behind a
token that ends a completion, the environment answers, and its tokens are part of the next state.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hf_rlhf.data.tokens import row_ids
from hf_rlhf.data.turns import end_of_turn
from hf_rlhf.environments.base import EnvFactory, SingleTurn
from hf_rlhf.environments.episode import (
    Episode,
    EpisodeLimits,
    EpisodeSettings,
    begin,
    end_at_limit,
    take,
    trajectory_of_episode,
)
from hf_rlhf.environments.episodes import DEFAULT_LIMITS, step
from hf_rlhf.errors import InputError
from hf_rlhf.rewards.contract import RewardFunction, Rewards
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.types import Completion

try:
    import gymnasium
    from gymnasium import spaces
except ImportError as missing:
    raise ImportError("gymnasium is not installed. Run `pip install hf-rlhf[gym]`") from missing

Allowed = Sequence[int] | Callable[[list[int]], Sequence[int]]


class TokenEnv(gymnasium.Env[np.ndarray, int]):
    """Episodes over a dataset's prompts, token by token.

    An observation is `(max_tokens,)` int64: the ids so far, and `len(tokenizer)` behind them. `info["action_mask"]` is
    `(V,)` int8 with 1 for each token that is allowed next, as `action_space.sample(mask)` takes it. A reward is 0 but
    behind a completion: there it is what the environment pays and, at the end, the sum of the reward functions.

    Args:
        tokenizer: of the policy.
        rows: with `prompt` and any other columns; `reset(options={"row": 0})` chooses one, and chance does otherwise.
        environment: see `PPOTrainer`.
        reward_funcs: functions by TRL's contract, called at the end of an episode. For one that gives no reward (None),
            `info["unscored"]` is 1.
        max_completion_length: tokens of one completion, as in `PPOConfig`.
        limits: see `EpisodeLimits`.
        max_tokens: of a state. An episode is truncated where it is full.
        end_ids: tokens that end a completion; by default the end token and what the chat template closes a turn with.
        allowed: ids that may be sampled, or a function that returns them for the ids so far. By default all.
        chat_template_kwargs: for the chat template.
    """

    metadata = {"render_modes": ["ansi"]}

    def __init__(
        self,
        tokenizer,
        rows: Sequence[Mapping[str, Any]],
        *,
        environment: EnvFactory = SingleTurn,
        reward_funcs: Sequence[RewardFunction] | None = None,
        max_completion_length: int = 64,
        limits: EpisodeLimits = DEFAULT_LIMITS,
        max_tokens: int = 512,
        end_ids: Sequence[int] | None = None,
        allowed: Allowed | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        render_mode: str | None = None,
    ):
        if not len(rows):
            raise InputError("rows=[] is invalid: there is no prompt. Give at least one row.")
        self.tokenizer, self.environment, self.render_mode = tokenizer, environment, render_mode
        self.settings = EpisodeSettings(tokenizer, Sampling(max_completion_length), limits, chat_template_kwargs)
        self.rows = [self._with_ids(row) for row in rows]
        self.rewards = Rewards(list(reward_funcs)) if reward_funcs else None
        self.max_tokens, self.allowed = max_tokens, allowed
        self.end_ids = set(self._default_ends() if end_ids is None else end_ids)
        self.action_space = spaces.Discrete(len(tokenizer))  # pyright: ignore[reportAttributeAccessIssue]
        self.observation_space = spaces.Box(0, len(tokenizer), (max_tokens,), np.int64)
        self._episode: Episode | None = None
        self._ids: list[int] = []  # of the completion that is being written

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Begin an episode; return its prompt as observation, and info. Raises `InputError` for a prompt too long."""
        super().reset(seed=seed)
        number = (options or {}).get("row")
        row = self.rows[int(self.np_random.integers(len(self.rows))) if number is None else number]
        self._ids = []
        self._episode = begin(row, self.environment(), int(self.np_random.integers(2**62)), self.settings)
        if self._episode.failure is not None:
            raise self._episode.failure
        if len(self._episode.prompt_ids) >= self.max_tokens:
            raise InputError(
                f"max_tokens={self.max_tokens} is invalid: a prompt has {len(self._episode.prompt_ids)} tokens, and a"
                " completion follows. Raise it, or give shorter prompts."
            )
        return self._observation(), self._info()

    def step(self, action: int):
        """Append a token. Raises `ValueError` for one that the action mask forbids."""
        episode = self._episode
        if episode is None or not episode.live:
            raise RuntimeError("the episode is over, or was not begun by reset")
        if not self.action_masks()[action]:
            raise ValueError(f"the token {action} is not allowed here: see info['action_mask']")
        self._ids.append(int(action))
        stopped = int(action) in self.end_ids
        full = len(episode.context) + len(self._ids) >= self.max_tokens
        if not (stopped or full or len(self._ids) >= self.settings.sampling.max_completion_length):
            return self._observation(), 0.0, False, False, self._info()
        before = sum(episode.rewards)
        take(episode, Completion(self._ids, [], stopped), self.settings)
        self._ids = []
        step([episode], self.settings)
        if episode.live and len(episode.context) >= self.max_tokens:
            end_at_limit(episode)
        if episode.failure is not None:
            raise episode.failure
        reward, truncated = sum(episode.rewards) - before, episode.last.truncated
        info: dict[str, Any] = {**episode.last.info, "text": episode.answer}
        if truncated or episode.last.terminated:
            reward += self._score(episode, info)
        observation, masks = self._observation(), self._info()
        if truncated:
            self._episode = None
        return observation, float(reward), episode.last.terminated, truncated, {**info, **masks}

    def action_masks(self) -> np.ndarray:
        """Return `(V,)` bool: the tokens that are allowed next. Some libraries ask by this name."""
        if self.allowed is None:
            return np.ones(len(self.tokenizer), dtype=bool)
        mask = np.zeros(len(self.tokenizer), dtype=bool)
        mask[list(self.allowed(self._state()) if callable(self.allowed) else self.allowed)] = True
        return mask

    def render(self) -> str:
        """Return the text so far, with special tokens."""
        return str(self.tokenizer.decode(self._state()))

    def _state(self) -> list[int]:
        return [] if self._episode is None else [*self._episode.context, *self._ids]

    def _observation(self) -> np.ndarray:
        state = self._state()[: self.max_tokens]
        observation = np.full(self.max_tokens, len(self.tokenizer), dtype=np.int64)
        observation[: len(state)] = state
        return observation

    def _info(self) -> dict[str, Any]:
        return {"action_mask": self.action_masks().astype(np.int8)}

    def _score(self, episode: Episode, info: dict[str, Any]) -> float:
        """Return the reward functions' sum for a finished episode, and put their parts into `info`."""
        if self.rewards is None:
            return 0.0
        reward = self.rewards.compute([trajectory_of_episode(episode)]).rewards[0]
        info |= {f"rewards/{name}": value for name, value in reward.parts.items() if value is not None}
        info["unscored"] = float(reward.total is None)
        return reward.total or 0.0

    def _with_ids(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        if "prompt_ids" in row:
            return row
        how: dict[str, Any] = {"options": row, "chat_template_kwargs": self.settings.chat_template_kwargs}
        return {**row, "prompt_ids": row_ids(row["prompt"], self.tokenizer, continued=True, **how)}

    def _default_ends(self) -> list[int]:
        turn = None
        if not isinstance(self.rows[0]["prompt"], str):
            turn = end_of_turn(self.tokenizer, self.rows[0], self.settings.chat_template_kwargs)
        ends = [self.tokenizer.eos_token_id, *(turn.tokens if turn else ())]
        return [token for token in ends if token is not None]
