"""The token-level environment: by Gymnasium's own checker, and the same as the episodes of PPO."""

import numpy as np
import pytest
import torch
from environments.games import TwoTurns
from environments.playing import play, rows_of
from gymnasium.utils.env_checker import check_env
from tiny import WORDS, happy_reward, make_model, make_tokenizer

from hf_rlhf.environments import TokenEnv
from hf_rlhf.environments.episode import EpisodeLimits
from hf_rlhf.errors import InputError
from hf_rlhf.rollout.sampling import Sampling

LIMITS = EpisodeLimits(max_turns=3)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def make(tokenizer, count=3, **settings):
    return TokenEnv(tokenizer, rows_of(tokenizer, count), **{"max_completion_length": 4, "max_tokens": 64, **settings})


@pytest.mark.parametrize("environment", [{}, {"environment": TwoTurns}])
@pytest.mark.filterwarnings("ignore:.*(not within the observation space|minimum and maximum|render).*")
def test_gymnasiums_own_checker_accepts_it(tokenizer, environment):
    check_env(make(tokenizer, reward_funcs=[happy_reward], render_mode="ansi", **environment), skip_close_check=True)


def test_the_tokens_and_rewards_are_those_of_an_episode_of_ppo(tokenizer):
    rows = rows_of(tokenizer, 4)
    model = make_model(tokenizer, max_position_embeddings=256)
    episodes = play(model, tokenizer, rows, TwoTurns, LIMITS, Sampling(4))
    env = make(tokenizer, 4, environment=TwoTurns, limits=LIMITS, end_ids=[tokenizer.eos_token_id])
    for number, episode in enumerate(episodes):
        state, _ = env.reset(options={"row": number}, seed=0)
        paid, ended = [], False
        env._episode.env.word = episode.messages[1]["content"].split()[0]  # its chance is the episode's own
        for token, own in zip(episode.completion.ids, episode.completion_mask, strict=True):
            if own:
                assert not ended
                state, reward, terminated, truncated, _ = env.step(token)
                paid.append(reward)
                ended = terminated or truncated
        assert ended
        ids = state[state < len(tokenizer)].tolist()
        assert ids == episode.prompt_ids + episode.completion.ids
        mask = torch.tensor(episode.completion_mask)
        assert paid == episode.env_rewards[mask].tolist()


def test_reward_functions_are_paid_at_the_end_and_none_is_said(tokenizer):
    happy, end = tokenizer.convert_tokens_to_ids(["happy", "<|im_end|>"])
    env = make(tokenizer, reward_funcs=[happy_reward])
    env.reset(seed=1)
    assert env.step(happy)[1:4] == (0.0, False, False)
    _, reward, terminated, truncated, info = env.step(end)
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert (info["text"], info["rewards/happy_reward"], info["unscored"]) == ("happy", 1.0, 0.0)
    with pytest.raises(RuntimeError, match="over"):
        env.step(happy)
    silent = make(tokenizer, reward_funcs=[lambda prompts, completions: [None]])
    silent.reset(seed=1)
    assert silent.step(end)[4]["unscored"] == 1.0


def test_masks_say_which_tokens_are_allowed_and_others_are_refused(tokenizer):
    words = tokenizer.convert_tokens_to_ids(WORDS[:3])
    env = make(tokenizer, allowed=lambda ids: words[: 1 + len(ids) % 2])
    _, info = env.reset(seed=1)
    assert np.flatnonzero(info["action_mask"]).tolist() == words[: int(info["action_mask"].sum())]
    assert env.action_masks().tolist() == info["action_mask"].astype(bool).tolist()
    with pytest.raises(ValueError, match="not allowed"):
        env.step(words[2])
    assert env.action_space.sample(mask=info["action_mask"]) in words[:2]


def test_a_full_state_and_the_limit_of_turns_truncate(tokenizer):
    env = make(tokenizer, environment=TwoTurns, max_tokens=10, max_completion_length=8)
    env.reset(seed=1, options={"row": 0})
    steps = [env.step(9)[2:4]]
    while not any(steps[-1]):
        steps.append(env.step(9)[2:4])
    assert steps[-1] == (False, True)
    limited = make(tokenizer, environment=TwoTurns, max_completion_length=1, limits=EpisodeLimits(max_turns=1))
    limited.reset(seed=1)
    assert limited.step(9)[2:4] == (False, True)


@pytest.mark.parametrize(
    ("settings", "reason"), [({"count": 0}, "there is no prompt"), ({"max_tokens": 3}, "max_tokens=3")]
)
def test_what_it_cannot_play_is_refused(tokenizer, settings, reason):
    with pytest.raises(InputError, match=reason):
        make(tokenizer, **settings).reset()
