"""Estimators of the advantage on the same trajectories, through the trainer."""

import pytest
import torch
from environments.games import Endless
from tiny import happy_reward, make_config, make_tokenizer, make_trainer, metrics_of, perturb, snapshot

from hf_rlhf.errors import InputError
from hf_rlhf.models.advantage_head import WEIGHTS_NAME
from hf_rlhf.ops import monte_carlo_returns, sequence_returns
from hf_rlhf.ppo.estimators import ReturnMean, estimate_advantages, known_estimators
from hf_rlhf.ppo.gradient_variance import gradient_variance
from hf_rlhf.ppo.rules import ESTIMATORS


def trainer_of(folder, estimator="dae", **flags):
    """A trainer whose critic and advantage head say something already."""
    groups = {"num_generations": 4, "whiten_advantages": False, "value_head_init_std": 0.5}
    trainer = make_trainer(folder, advantage_estimator=estimator, **{**groups, **flags})
    return perturb(trainer.policy, only="advantage_head.direction") and trainer


def some_unscored(prompts, completions, number, **columns):
    rewards = happy_reward(prompts, completions)
    return [None if b % 4 == 1 else reward + b / 10 for b, reward in enumerate(rewards)]


def test_each_estimator_is_its_formula_on_the_same_trajectories(tmp_path):
    trainer = trainer_of(tmp_path, reward=some_unscored, kl_coef=0.3, gamma=0.9)
    perturb(trainer.policy, only="lora")
    experience = trainer.make_experience(0)
    rewards, mask, config = experience.per_token_rewards, experience.mask, trainer.args
    counted = mask.any(dim=1)
    assert counted.tolist() == [True, False, True, True] * 2
    found = {name: estimate_advantages(name, experience, config, ReturnMean()) for name in ESTIMATORS}
    whole, to_go = sequence_returns(rewards, mask, 0.9), monte_carlo_returns(rewards, mask, 0.9)
    assert to_go.std() > 0
    zero = torch.zeros(())
    expected = {
        "reinforce": torch.where(mask, whole[:, None], zero),
        "monte_carlo": to_go,
        "value": torch.where(mask, to_go - experience.values, zero),
        "dae": experience.fitted_advantages,
    }
    others = {}
    for b in range(8):
        of_group = [j for j in range(b // 4 * 4, b // 4 * 4 + 4) if counted[j]]
        others["group", b] = whole[of_group].mean()
        others["leave_one_out", b] = whole[[j for j in of_group if j != b]].mean()
        others["running_mean", b] = whole[[j for j in range(8) if counted[j] and j != b]].mean()
    for name in ("group", "leave_one_out", "running_mean"):
        rows = [torch.where(mask[b], whole[b] - others[name, b], zero) for b in range(8)]
        expected[name] = torch.stack(rows)
    for name, advantages in expected.items():
        torch.testing.assert_close(found[name], advantages, msg=name)
    assert set(expected) | {"gae"} == set(ESTIMATORS)
    torch.testing.assert_close(found["dae"], experience.advantages)


def test_the_running_mean_forgets_earlier_iterations_slowly_and_survives_in_the_state(tmp_path):
    trainer = trainer_of(tmp_path, "running_mean", baseline_decay=0.5)
    counted = torch.ones(2, dtype=torch.bool)
    earlier = ReturnMean().with_iteration(torch.tensor([1.0, 3.0]), counted, 0.5)
    later = earlier.with_iteration(torch.tensor([10.0, 10.0]), counted, 0.5)
    assert (later.total, later.count) == (22.0, 3.0)
    trainer.earlier_returns = later
    state = trainer.algorithm_state()
    trainer.earlier_returns = ReturnMean()
    trainer.load_algorithm_state(state)
    assert trainer.earlier_returns == later


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_truncated_episode_is_worth_what_the_critic_says_beyond_it(tmp_path, name):
    flags = {"max_turns": 2, "kl_coef": 0.0, "trainer_kwargs": {"environment": Endless}, "max_completion_length": 3}
    trainer = trainer_of(tmp_path, name, reward=lambda prompts, **columns: [0.0] * len(prompts), **flags)
    experience = trainer.make_experience(0)
    assert not experience.mask.all(dim=1).any()  # there are tokens of the environment
    before = experience.advantages
    experience.bootstrap = experience.bootstrap + torch.arange(8.0)
    after, _ = trainer.advantages(experience)
    assert (after[~experience.mask] == 0).all()
    assert torch.equal(before, after) == (name == "dae")  # which is fitted to them


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_trains_and_resumes_to_the_same_weights(tmp_path, name):
    own_state = name in ("running_mean", "dae")
    flags = {"save_strategy": "steps", "save_steps": 4, "learning_rate": 5e-3, "whiten_advantages": True}
    flags |= {"max_steps": 8 if own_state else 4, "num_ppo_epochs": 2}
    whole = trainer_of(tmp_path / "whole", name, **flags)
    start = snapshot(whole.policy)
    whole.train()
    assert all(torch.isfinite(weight).all() for weight in whole.policy.parameters())
    moved = [key for key, weight in whole.policy.named_parameters() if not torch.equal(weight, start[key])]
    assert any("lora" in key for key in moved)
    assert any("advantage_head" in key for key in moved) == (name == "dae")
    assert (tmp_path / "whole" / "checkpoint-4" / WEIGHTS_NAME).is_file() == (name == "dae")
    if not own_state:
        return
    resumed = trainer_of(tmp_path / "whole", name, **flags)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    weights = snapshot(resumed.policy)
    assert all(torch.equal(weight, weights[key]) for key, weight in whole.policy.named_parameters())


def test_the_advantage_head_learns_which_token_is_paid_and_keeps_the_mean_0(tmp_path):
    """The policy stays, one token is paid, and its advantage is 1 less its probability: that of others is below 0."""
    word = make_tokenizer().convert_tokens_to_ids("happy")
    trainer = make_trainer(
        tmp_path,
        reward=lambda prompts, completion_ids, **columns: [float(ids[0] == word) for ids in completion_ids],
        advantage_estimator="dae",
        max_completion_length=1,
        num_generations=8,
        per_device_train_batch_size=64,
        num_mini_batches=1,
        num_ppo_epochs=4,
        kl_coef=0.0,
        vf_coef=1.0,
        learning_rate=0.0,
        critic_learning_rate=3e-2,
        lr_scheduler_type="constant",
        max_steps=60,
    )
    trainer.train()
    policy, row = trainer.policy.eval(), trainer.make_experience(0).sequences[torch.tensor([0])]
    of_tokens = []
    for token in range(policy.config.vocab_size):
        row.input_ids[0, row.prompt_lengths[0]] = token
        with torch.no_grad():
            output = policy(row)
        of_tokens.append((output.logprobs[0, 0].exp().item(), output.advantages[0, 0].item()))
    assert abs(sum(p * advantage for p, advantage in of_tokens)) < 1e-5
    others = [advantage for token, (_, advantage) in enumerate(of_tokens) if token != word]
    assert of_tokens[word][1] > 0.5
    assert of_tokens[word][1] > 2 * max(others)


def test_the_variance_of_the_gradient_is_that_of_the_gradients_of_single_completions(tmp_path):
    trainer = trainer_of(tmp_path, log_gradient_variance=2, reward=some_unscored, max_steps=12)
    perturb(trainer.policy, only="lora")
    experience = trainer.make_experience(0)
    names = known_estimators(experience, trainer.args, learned=True)
    assert set(names) == set(ESTIMATORS)
    advantages = {name: estimate_advantages(name, experience, trainer.args, ReturnMean()) for name in names}
    found = gradient_variance(trainer.policy, experience, advantages, 1.0)
    weights = trainer.policy.policy_parameters()
    for name in names:
        rows = []
        for b in experience.mask.any(dim=1).nonzero().flatten().tolist():
            trainer.policy.zero_grad()
            output = trainer.policy(experience.sequences, values=False)
            (output.logprobs[b] * advantages[name][b]).sum().backward()
            rows.append(torch.cat([w.grad.flatten() for w in weights]))
        expected = torch.stack(rows).var(dim=0).sum()
        assert found[name] == pytest.approx(expected.item(), rel=1e-4), name
    trainer.policy.zero_grad()
    trainer.train()
    logged = [sum("gradient_variance/" in key for key in row) for row in metrics_of(tmp_path) if "reward" in row]
    assert logged == [8, 0, 8]


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ({"advantage_estimator": "gea"}, "advantage_estimator=gea is invalid: it must be one of gae, "),
        ({"advantage_estimator": "group"}, "it must be with num_generations of 2 or more"),
        ({"advantage_estimator": "value", "vf_coef": 0.0}, "it must be with vf_coef above 0"),
        ({"advantage_estimator": "dae", "vf_coef": 0.0}, "it must be with vf_coef above 0"),
        ({"baseline_decay": 1.5}, "baseline_decay=1.5 is invalid"),
        ({"log_gradient_variance": 0}, "log_gradient_variance=0 is invalid"),
    ],
)
def test_what_has_no_meaning_is_refused(tmp_path, flags, rule):
    with pytest.raises(InputError, match=rule):
        make_config(tmp_path, **flags)


def test_sharded_weights_take_neither_an_advantage_head_nor_the_variance(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for flags in ({"advantage_estimator": "dae"}, {"log_gradient_variance": 1}):
        with pytest.raises(InputError, match="FSDP and DeepSpeed"):
            make_config(tmp_path, **flags)
