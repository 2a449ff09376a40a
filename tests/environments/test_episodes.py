"""Episodes: what is sampled is what is learned from, whatever the batch."""

import random

import pytest
import torch
from environments import playing
from environments.games import Endless, Fails, GuessNumber, TwoTurns
from tiny import make_lora, make_model, make_prompts, make_tokenizer

from hf_rlhf.environments import SingleTurn, Turn, check_env
from hf_rlhf.environments.episode import EpisodeLimits
from hf_rlhf.environments.episodes import collect_episodes
from hf_rlhf.errors import InputError
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.trainer import PPOTrainer
from hf_rlhf.rollout.collect import collect
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import Sampling, row_seed


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(tokenizer, max_position_embeddings=256).eval()


@pytest.fixture(scope="module")
def rows(tokenizer):
    return playing.rows_of(tokenizer, 8)


def play(model, tokenizer, rows, make_env=TwoTurns, *args, **settings):
    return playing.play(model, tokenizer, rows, make_env, *args, **settings)


def test_one_turn_is_what_collect_gives(model, tokenizer, rows):
    seeds = [row_seed(0, row["number"]) for row in rows]
    plain = collect(TransformersEngine(model, tokenizer), rows, tokenizer, Sampling(6), seeds)
    for episode, completion in zip(play(model, tokenizer, rows, SingleTurn), plain, strict=True):
        assert episode.completion == completion.completion
        assert (episode.text, episode.prompt_ids, episode.completion_mask) == (
            completion.text, completion.prompt_ids, completion.completion_mask,
        )  # fmt: skip


def test_the_tokens_are_those_that_the_policy_saw_and_the_mask_those_that_it_sampled(model, tokenizer, rows):
    seen = []

    class Recording(TransformersEngine):
        def generate(self, prompts, sampling, seeds):
            completions = super().generate(prompts, sampling, seeds)
            seen.append(list(zip(map(list, prompts), completions, strict=True)))
            return completions

    engine, seeds = Recording(model, tokenizer), [row_seed(0, row["number"]) for row in rows]
    episodes = collect_episodes(engine, rows, tokenizer, Sampling(6), seeds, TwoTurns)
    for b, episode in enumerate(episodes):
        whole = episode.prompt_ids + episode.completion.ids
        context, last = seen[1][b]
        assert whole == context + last.ids
        sampled = [token for token, own in zip(episode.completion.ids, episode.completion_mask, strict=True) if own]
        assert sampled == seen[0][b][1].ids + last.ids
        between = tokenizer.decode(
            [token for token, own in zip(episode.completion.ids, episode.completion_mask, strict=True) if not own]
        )
        word = episode.messages[1]["content"]
        end = "" if seen[0][b][1].stopped else "<|im_end|> "
        assert between == f"{end}<|im_start|> user {word} <|im_end|> <|im_start|> assistant"


def test_what_the_environment_pays_is_on_the_last_token_of_each_answer(model, tokenizer, rows):
    for episode in play(model, tokenizer, rows):
        answers = [message["content"] for message in episode.messages if message["role"] == "assistant"]
        ends = [
            t for t, own in enumerate(episode.completion_mask) if own and not (episode.completion_mask + [False])[t + 1]
        ]
        expected = torch.zeros(len(episode.completion.ids), dtype=torch.float64)
        expected[ends] = torch.tensor([float(len(answer.split())) for answer in answers], dtype=torch.float64)
        assert torch.equal(episode.env_rewards, expected)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_greedy_episodes_are_the_same_at_every_batch_size(model, tokenizer, rows, batch_size):
    greedy = Sampling(6, temperature=0)
    whole = play(model, tokenizer, rows, sampling=greedy)
    parts = play(model, tokenizer, rows, sampling=greedy, batch_size=batch_size)
    alone = [play(model, tokenizer, [row], sampling=greedy)[0] for row in rows]
    for one, two, three in zip(whole, parts, alone, strict=True):
        assert one.completion.ids == two.completion.ids == three.completion.ids
        assert torch.equal(one.env_rewards, three.env_rewards)


def test_limits_truncate_and_an_end_terminates(model, tokenizer, rows):
    for episode in play(model, tokenizer, rows, Endless, EpisodeLimits(max_turns=3)):
        assert (episode.truncated, episode.info["turns"]) == (True, 3.0)
    for episode in play(model, tokenizer, rows, Endless, EpisodeLimits(max_turns=9, max_tokens=30)):
        assert episode.truncated
        assert len(episode.completion.ids) <= 30
    assert not any(episode.truncated for episode in play(model, tokenizer, rows))


def test_a_game_is_won_lost_and_given_up():
    game = GuessNumber()
    assert game.reset({"number": 2}, random.Random(0)) == [{"role": "user", "content": "guess"}]
    assert game.step("1") == Turn(({"role": "user", "content": "no"},))
    assert game.step(" 2 ") == Turn(reward=1.0, terminated=True)
    game.reset({"number": 2}, random.Random(0))
    assert [game.step("3").truncated for _ in range(3)] == [False, False, True]
    check_env(GuessNumber, [{"number": 1}, {"number": 3}])


def test_an_episode_whose_environment_fails_is_not_learned_from(model, tokenizer, rows, caplog):
    episodes = play(model, tokenizer, rows, Fails, EpisodeLimits(max_failed_share=0.5))
    assert "3 of 8 episodes of Fails raised an exception" in caplog.text
    for row, episode in zip(rows, episodes, strict=True):
        failed = row["number"] % 3 == 0
        assert any(episode.completion_mask) != failed
        assert (episode.env_rewards is None) == failed
    with pytest.raises(InputError, match="out of order"):
        play(model, tokenizer, rows, Fails)


def ppo(tmp_path, tokenizer, environment, reward_funcs=None, **flags):
    settings = {
        "output_dir": str(tmp_path), "per_device_train_batch_size": 4, "num_mini_batches": 2, "max_steps": 2, "num_ppo_epochs": 1,
        "learning_rate": 1e-2, "max_prompt_length": 16, "max_completion_length": 6, "report_to": "none", "use_cpu": True,
        "save_strategy": "no",
    }  # fmt: skip
    model = make_model(tokenizer, max_position_embeddings=256)
    args = PPOConfig(**{**settings, **flags})
    return PPOTrainer(
        model,
        reward_funcs,
        args,
        make_prompts(8),
        processing_class=tokenizer,
        environment=environment,
        peft_config=make_lora(),
    )


def test_one_turn_trains_as_a_run_without_an_environment(tmp_path, tokenizer):
    def length(prompts, completions, **columns):
        return [float(len(completion[0]["content"])) for completion in completions]

    class PaysItself(SingleTurn):
        def step(self, completion):
            return Turn(reward=float(len(completion)), terminated=True)

    runs = [
        ppo(tmp_path / "plain", tokenizer, None, length),
        ppo(tmp_path / "single", tokenizer, SingleTurn, length),
        ppo(tmp_path / "itself", tokenizer, PaysItself),
    ]
    weights = []
    for run in runs:
        run.train()
        weights.append(torch.cat([p.detach().flatten() for p in run.policy.parameters() if p.requires_grad]))
    assert torch.equal(weights[0], weights[1])
    assert torch.allclose(weights[0], weights[2], atol=1e-7)


def test_a_truncated_episode_is_worth_what_the_critic_says_beyond_it(tmp_path, tokenizer):
    trainer = ppo(
        tmp_path, tokenizer, Endless, max_turns=2, value_head_init_std=1.0, whiten_advantages=False, kl_coef=0.0
    )
    experience = trainer.make_experience(0)
    beyond = experience.bootstrap
    assert beyond is not None
    assert (beyond != 0).all()
    last = experience.mask.sum(dim=1)
    final = torch.tensor([experience.mask[b].nonzero()[-1].item() for b in range(len(experience))])
    rows = torch.arange(len(experience))
    delta = experience.per_token_rewards[rows, final] + beyond - experience.values[rows, final]
    torch.testing.assert_close(experience.advantages[rows, final], delta)
    assert (last > 0).all()
    trainer_2 = ppo(tmp_path / "2", tokenizer, TwoTurns, value_head_init_std=1.0)
    assert (trainer_2.make_experience(0).bootstrap == 0).all()


class WrongRole(SingleTurn):
    def reset(self, row, rng):
        return [{"role": "narrator", "content": "once"}]


class SharedState(SingleTurn):
    count = [0]

    def reset(self, row, rng):
        self.count[0] += 1
        return [{"role": "user", "content": str(self.count[0])}]


class NotATurn(SingleTurn):
    def step(self, completion):
        return 1.0


class InfiniteReward(SingleTurn):
    def step(self, completion):
        return Turn(reward=float("inf"), terminated=True)


class NoNumber(SingleTurn):
    def step(self, completion):
        return Turn(terminated=True, info={"place": None})  # pyright: ignore


class GoesOn(TwoTurns):
    def step(self, completion):
        self.turn += 1
        return Turn(({"role": "user", "content": "more"},)) if self.turn != 1 else Turn(terminated=True)


class Unpicklable(SingleTurn):
    def reset(self, row, rng):
        self.function = lambda: None
        return row["prompt"]


@pytest.mark.parametrize(
    ("make_env", "message"),
    [
        (WrongRole, "role 'narrator'"),
        (SharedState, "equal chance differ"),
        (NotATurn, "no Turn"),
        (InfiniteReward, "the reward inf"),
        (NoNumber, "info place=None"),
        (GoesOn, "goes on when step is called again"),
        (Unpicklable, "cannot be copied"),
    ],
)
def test_a_check_names_what_is_wrong_with_an_environment(make_env, message):
    with pytest.raises(InputError, match=message):
        check_env(make_env, [{"prompt": [{"role": "user", "content": "hello"}]}])


def test_a_check_accepts_what_follows_the_contract():
    check_env(TwoTurns, [{"prompt": [{"role": "user", "content": "hello"}]}])
    check_env(SingleTurn, [{"prompt": "hello"}])


def test_a_completion_without_a_reward_stays_without_one(tmp_path, tokenizer):
    def every_second(prompts, completions, **columns):
        return [None if number % 2 else 1.0 for number in range(len(completions))]

    counted = []
    for environment in (None, SingleTurn):
        trainer = ppo(tmp_path / str(environment is None), tokenizer, environment, every_second)
        counted.append(trainer.make_experience(0).mask.any(dim=1).tolist())
    assert counted[0] == counted[1] == [True, False] * 4


def test_the_value_beyond_a_truncated_episode_is_that_of_what_the_environment_said_last(model, tokenizer, rows):
    for episode in play(model, tokenizer, rows, Endless, EpisodeLimits(max_turns=1)):
        assert tokenizer.decode(episode.completion.ids).endswith("user the cat ? <|im_end|> <|im_start|> assistant")
        assert not episode.completion_mask[-1]


def test_failures_are_counted_over_the_iteration(tmp_path, tokenizer):
    flags = {"reward_while_sampling": True, "generation_batch_size": 2}

    def nothing(prompts, completions, **columns):
        return [0.0] * len(completions)

    trainer = ppo(tmp_path, tokenizer, Fails, nothing, max_failed_episodes=0.4, **flags)
    assert trainer.make_experience(0).mask.any(dim=1).sum() == 5
    trainer = ppo(tmp_path / "few", tokenizer, Fails, nothing, max_failed_episodes=0.3, **flags)
    with pytest.raises(InputError, match="3 of 8 episodes failed"):
        trainer.make_experience(0)


def test_what_knows_one_completion_is_refused_with_an_environment(tmp_path, tokenizer):
    trainer = ppo(tmp_path, tokenizer, TwoTurns)
    with pytest.raises(InputError, match="no episodes"):
        trainer.generate(["the cat"])
    with pytest.raises(InputError, match="overlong_penalty"):
        ppo(tmp_path / "2", tokenizer, TwoTurns, overlong_penalty=1.0, overlong_buffer=2)
