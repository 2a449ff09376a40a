"""The dialogue that pays at its end for its first reply: the value travels over the user's turn, and the ablation not."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import make_model, make_prompts, make_tokenizer, make_trainer

from hf_rlhf.environments import Dialogue
from hf_rlhf.ops import gae


@pytest.fixture
def dialogue(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import dialogue

    yield dialogue
    sys.modules.pop("dialogue")


def says_happy(messages, row):
    replies = [message["content"] for message in messages if message["role"] == "assistant"]
    return None if len(replies) < 2 else float("happy" in replies[0].split())


def test_the_reward_is_that_of_the_first_reply_and_comes_behind_the_second(dialogue):
    first = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Yes! Sure!!"}]
    assert dialogue.paid_at_the_end(first, {}) is None
    assert (
        dialogue.paid_at_the_end([*first, {"role": "user", "content": "!"}, {"role": "assistant", "content": "no"}], {})
        == 1.0
    )


def trainer_of(folder, cut=None, **settings):
    tokenizer = make_tokenizer()
    made = make_trainer(
        folder,
        model=make_model(tokenizer, num_hidden_layers=1, hidden_size=64, initializer_range=0.15),
        tokenizer=tokenizer,
        data=make_prompts(32),
        lora=None,
        trainer_kwargs={"environment": partial(Dialogue, ["yes"], reached=says_happy, max_turns=2)},
        **{
            "max_completion_length": 1,
            "max_turns": 2,
            "max_episode_length": 24,
            "kl_coef": 0.0,
            "lam": 1.0,
            "vf_coef": 0.5,
        }
        | settings,
    )
    if cut is not None:
        made.__class__ = cut
    return made


def test_the_advantages_of_the_ablation_are_those_of_replies_by_themselves(dialogue, tmp_path):
    trainer = trainer_of(
        tmp_path, dialogue.CutAtTurns, reward=lambda prompts, completions, **columns: [0.0] * len(completions)
    )
    experience = trainer.make_experience(0)
    advantages, returns = trainer.advantages(experience)
    row = int(experience.mask.sum(dim=1).argmax())
    places = experience.mask[row].nonzero().flatten().tolist()
    turns = [[places[0]]]
    for place in places[1:]:
        turns[-1].append(place) if place == turns[-1][-1] + 1 else turns.append([place])
    assert len(turns) == 2
    for turn in turns:
        rewards, values = (each[row, turn][None] for each in (experience.per_token_rewards, experience.values))
        alone = gae(rewards, values, torch.ones_like(rewards, dtype=torch.bool), 1.0, 1.0)
        assert torch.allclose(advantages[row, turn], alone.advantages[0])
        assert torch.allclose(returns[row, turn], alone.returns[0])


@pytest.mark.parametrize("cut", [False, True])
def test_only_a_value_that_travels_teaches_the_first_reply(dialogue, tmp_path, cut):
    trainer = trainer_of(
        tmp_path, dialogue.CutAtTurns if cut else None, reward=lambda prompts, completions, **columns: [0.0] * len(completions),
        per_device_train_batch_size=16, max_steps=64, learning_rate=1e-2, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer.train()
    last = trainer.iteration_log.last["reward"]
    assert (last < 0.3) if cut else (last > 0.8)
