"""A tiny policy comes close to optima that are known, and holds a KL that it is told to."""

import math

import pytest
import torch
from tiny import make_model, make_prompts, make_tokenizer, make_trainer, metrics_of
from transformers import LlamaForSequenceClassification

from hf_rlhf.ppo.rules import CRITICS

TOKENIZER = make_tokenizer()
HAPPY = TOKENIZER.convert_tokens_to_ids("happy")
SEEDS = range(5)


def tiny_policy(seed):
    """One layer, wide enough for its frozen head to make any token certain."""
    return make_model(TOKENIZER, seed=seed, num_hidden_layers=1, hidden_size=64, initializer_range=0.15)


def make(folder, seed=0, critic="value_head", **flags):
    value_model = None
    if critic == "model":
        config = tiny_policy(seed).config
        config.num_labels = 1
        value_model = LlamaForSequenceClassification(config)
    return make_trainer(
        folder,
        model=tiny_policy(seed),
        tokenizer=TOKENIZER,
        trainer_kwargs={"value_model": value_model},
        **{
            "seed": seed,
            "critic": critic,
            "per_device_train_batch_size": 24,
            "num_mini_batches": 1,
            "max_completion_length": 4,
            "learning_rate": 2e-2,
            "lr_scheduler_type": "linear",
            "cliprange": 0.3,
            "lam": 1.0,
            "kl_coef": 0.0,
            "num_logged_samples": 0,
            "data": make_prompts(32),
        }
        | flags,
    )


def rewards_of(folder):
    return [row["reward"] for row in metrics_of(folder) if "iteration" in row]


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_but_happy_is_said_after_48_updates(tmp_path, seed, critic):
    """The optimum is 1: the share of words that are "happy", without a KL."""
    make(tmp_path, seed, critic, max_steps=48).train()
    rewards = rewards_of(tmp_path)
    assert len(rewards) == 24
    assert rewards[0] < 0.15
    assert sum(rewards[-3:]) / 3 >= 0.95


@pytest.mark.parametrize("critic", CRITICS)
def test_nothing_is_learned_at_a_learning_rate_of_zero(tmp_path, critic):
    make(tmp_path, critic=critic, learning_rate=0.0, max_steps=12).train()
    assert max(rewards_of(tmp_path)) < 0.25


# One token against a KL: the optimum in closed form


def next_token(model):
    """Log-probabilities `(32, V)` of the token after each prompt."""
    prompts = [row["prompt"] for row in make_prompts(32)]
    ids = TOKENIZER.apply_chat_template(prompts, add_generation_prompt=True, return_dict=False)
    with torch.no_grad():
        return torch.stack([model(torch.tensor([each])).logits[0, -1].log_softmax(dim=-1) for each in ids])


def objective(policy, reference, kl_coef):
    """`E[reward] - kl_coef * KL`, exactly; the reward is 1 for "happy"."""
    return (policy[:, HAPPY].exp() - kl_coef * kl(policy, reference)).mean().item()


def kl(policy, reference):
    return (policy.exp() * (policy - reference)).sum(dim=-1)


def optimum(reference, kl_coef):
    """`p*(v) ~ q(v) exp(reward(v) / kl_coef)` (Korbak 2022, arXiv 2205.11275, eq. 4)."""
    tilted = reference.clone()
    tilted[:, HAPPY] += 1 / kl_coef
    return tilted.log_softmax(dim=-1)


@pytest.mark.parametrize("seed", SEEDS)
def test_with_a_kl_the_policy_comes_to_the_closed_form_after_100_updates(tmp_path, seed):
    trainer = make(
        tmp_path,
        seed,
        data=make_prompts(64),
        per_device_train_batch_size=64,
        max_completion_length=1,
        kl_coef=0.3,
        vf_coef=1.0,
        learning_rate=1e-2,
        max_steps=100,
    )
    reference = next_token(trainer.policy.model)
    best = objective(optimum(reference, 0.3), reference, 0.3)
    start = objective(reference, reference, 0.3)
    trainer.train()
    reached = objective(next_token(trainer.policy.eval().model), reference, 0.3)
    assert start < 0.5 * best
    assert 0.95 * best <= reached <= best


TARGET = 1.0  # nats a completion


def coefficient_for_the_target(reference):
    """The coefficient whose optimum has the target's KL, by bisection."""
    low, high = 0.01, 10.0
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if kl(optimum(reference, middle), reference).mean() > TARGET else (low, middle)
    return low


@pytest.mark.parametrize("start", [0.1, 10.0], ids=["ten times too low", "ten times too high"])
def test_adaptive_control_holds_the_kl_at_its_target(tmp_path, start):
    right = coefficient_for_the_target(next_token(tiny_policy(0)))
    trainer = make(
        tmp_path,
        max_completion_length=1,
        kl_coef=start * right,
        kl_target=TARGET,
        kl_horizon=24,  # an iteration
        lr_scheduler_type="constant",
        learning_rate=1e-2,
        max_steps=120,
    )
    trainer.train()
    rows = [row for row in metrics_of(tmp_path) if "iteration" in row]
    kls = [row["objective/kl"] for row in rows]
    assert len(kls) == 60
    assert TARGET / 2 < sum(kls[40:]) / 20 < 2 * TARGET
    assert not TARGET / 2 < sum(kls[3:9]) / 6 < 2 * TARGET
