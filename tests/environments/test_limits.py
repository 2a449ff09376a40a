"""Episodes that a limit of the run ends: an environment that pays at the end pays for them too."""

from functools import partial

import pytest
from environments.byte_tokenizers import byte_tokenizer
from environments.games import Endless
from environments.playing import play, rows_of
from environments.test_adapters import GUESS, ROW, GuessForTRL, begun, dataset, verifiers
from environments.test_masks import Prepared, message, prompt_ids
from tiny import make_model, make_tokenizer

from hf_rlhf.environments import SingleTurn, TokenEnv, ToolUse, Turn, check_env
from hf_rlhf.environments.adapters import from_trl_environment, from_verifiers, verifiers_rows
from hf_rlhf.environments.episode import EpisodeLimits
from hf_rlhf.environments.episodes import collect_episodes
from hf_rlhf.errors import InputError
from hf_rlhf.rollout.sampling import Sampling


class PaysAtEnd(Endless):
    """One for each turn, and ten at the end."""

    def at_limit(self):
        return Turn(reward=10.0, terminated=True, info={"scored": 1.0})


class Raises(Endless):
    def at_limit(self):
        raise RuntimeError("no score")


class GoesOn(Endless):
    def at_limit(self):
        return Turn(({"role": "user", "content": "more"},))


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def episodes(tokenizer, make_env, limits):
    model = make_model(tokenizer, max_position_embeddings=256).eval()
    return play(model, tokenizer, rows_of(tokenizer, 3), make_env, limits)


@pytest.mark.parametrize(
    "limits", [EpisodeLimits(max_turns=2), EpisodeLimits(max_turns=9, max_tokens=30)], ids=["turns", "tokens"]
)
def test_what_is_paid_at_the_end_is_on_the_last_token_that_the_policy_chose(tokenizer, limits):
    pairs = zip(episodes(tokenizer, PaysAtEnd, limits), episodes(tokenizer, Endless, limits), strict=True)
    for paid, plain in pairs:
        last = max(t for t, chosen in enumerate(plain.completion_mask) if chosen)
        assert (paid.truncated, plain.truncated) == (False, True)
        assert paid.info["scored"] == 1.0
        assert paid.completion.ids[: last + 1] == plain.completion.ids[: last + 1]
        assert paid.env_rewards[last] == plain.env_rewards[last] + 10
        assert paid.env_rewards.sum() == plain.env_rewards.sum() + 10


def test_an_exception_there_is_the_failure_of_the_episode_and_a_turn_that_goes_on_is_refused(tokenizer):
    limits = EpisodeLimits(max_turns=2, max_failed_share=1.0)
    for episode in episodes(tokenizer, Raises, limits):
        assert "no score" in episode.info["failure"]
        assert not any(episode.completion_mask)
    with pytest.raises(InputError, match="at_limit returns a Turn that does not end the episode"):
        episodes(tokenizer, GoesOn, limits)
    with pytest.raises(InputError, match="at_limit returns a Turn that does not end the episode"):
        check_env(GoesOn, [{"prompt": "the cat"}], max_turns=2)
    check_env(PaysAtEnd, [{"prompt": "the cat"}], max_turns=2)


def test_a_state_that_is_full_ends_an_episode_of_tokens_with_its_pay(tokenizer):
    rows = rows_of(tokenizer, 1)
    full = len(rows[0]["prompt_ids"]) + 2
    ends = []
    for environment in (PaysAtEnd, Endless):
        env = TokenEnv(tokenizer, rows, environment=environment, max_tokens=full, max_completion_length=8)
        env.reset(seed=0)
        env.step(9)
        ends.append(env.step(9)[1:4])
    assert ends == [(11.0, True, False), (1.0, False, True)]


# --- environments of other libraries, and tools ------------------------------------------------------------------


def guesses(make_env, numbers, limits):
    """The episode of a policy that guesses and never answers."""
    tokenizer = byte_tokenizer("qwen3")
    end = [tokenizer.eos_token_id]
    turns = [(tokenizer(GUESS % number, add_special_tokens=False)["input_ids"] + end, None) for number in numbers]
    row = ROW | {"prompt_ids": prompt_ids(tokenizer, ROW["prompt"])}
    [episode] = collect_episodes(Prepared([turns]), [row], tokenizer, Sampling(64), [0], make_env, limits)
    return episode


class WithoutReward:
    reset, guess = GuessForTRL.reset, GuessForTRL.guess


LIMITS = {
    "max_turns": ({}, EpisodeLimits(max_turns=2)),
    "max_episode_length": ({}, EpisodeLimits(max_tokens=200)),
    "max_calls": ({"max_calls": 1}, EpisodeLimits()),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_get_reward_of_a_class_for_trl_is_paid_whatever_ends_the_episode(limit):
    settings, limits = LIMITS[limit]
    won, lost = (guesses(from_trl_environment(GuessForTRL, **settings), [number, number], limits) for number in (3, 5))
    assert (won.info["turns"], lost.info["turns"]) == (2.0, 2.0)
    assert (won.env_rewards.sum().item(), lost.env_rewards.sum().item()) == (1.0, 0.0)
    assert (won.truncated, lost.truncated) == (False, False)
    without = guesses(from_trl_environment(WithoutReward, **settings), [3, 3], limits)
    assert (without.env_rewards.sum().item(), without.truncated) == (0.0, True)


class Graded(ToolUse):
    """Pays for a call that was made, and for the answer."""

    def final_reward(self, completion):
        return float(self._calls) + 10.0 * ("3" in completion)


def guess(number: int) -> str:
    """Guess the number.

    Args:
        number: the guess
    """
    return "wrong"


def test_tools_that_pay_at_the_end_pay_without_an_answer_and_others_are_truncated():
    graded = guesses(partial(Graded, [guess]), [3, 3], EpisodeLimits(max_turns=2))
    assert (graded.env_rewards.sum().item(), graded.truncated) == (2.0, False)
    plain = guesses(partial(ToolUse, [guess]), [3, 3], EpisodeLimits(max_turns=2))
    assert (plain.env_rewards.sum().item(), plain.truncated) == (0.0, True)
    spent = guesses(partial(ToolUse, [guess], max_calls=1), [3, 3], EpisodeLimits())
    assert (spent.info["turns"], spent.truncated) == (2.0, True)


def test_the_rubric_of_verifiers_scores_an_episode_that_a_limit_ends():
    vf = verifiers()

    class Asks(vf.MultiTurnEnv):
        async def env_response(self, messages, state, **kwargs):
            return [message("again")]

    def long(completion):
        return float(len(completion))

    theirs = Asks(max_turns=9, dataset=dataset(), rubric=vf.Rubric(funcs=[long]))
    env, _ = begun(from_verifiers(theirs), verifiers_rows(theirs)[0])
    assert not env.step("3").ends
    assert not env.step("3").ends
    end = env.at_limit()
    assert (end.reward >= 3, end.terminated) == (True, True)
    with pytest.raises(RuntimeError, match="over"):
        env.step("3")


def test_one_turn_has_no_limit_to_end_it(tokenizer):
    assert not any(each.truncated for each in episodes(tokenizer, SingleTurn, EpisodeLimits(max_turns=1)))
