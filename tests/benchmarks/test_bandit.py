"""The bandit of benchmarks/bandit.py: estimators solve it, and the measured variance of each is that of theory."""

import sys
from pathlib import Path

import pytest
import torch
from tiny import make_tokenizer, perturb


@pytest.fixture
def bandit(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import bandit

    yield bandit
    sys.modules.pop("bandit")


@pytest.mark.parametrize("estimator", ["leave_one_out", "dae"])
def test_the_word_is_said_within_200_updates_and_the_variance_of_each_gradient_is_measured(bandit, estimator):
    result = bandit.run(estimator, 0)
    assert result.updates is not None
    assert result.updates <= 200
    assert result.probability >= 0.95
    assert result.variances[estimator] > 0
    assert result.variances["reinforce"] > 0
    row = bandit.table([result]).splitlines()[-1]
    assert row.startswith(f"| {estimator} | 1 of 1 | {result.updates} | ")
    assert set(result.exact) == set(result.variances)
    if estimator == "leave_one_out":
        assert result.variances[estimator] < 0.5 * result.variances["reinforce"]


def test_the_variance_is_measured_without_bias_at_the_weights_of_one_policy(bandit, tmp_path, monkeypatch):
    """The mean over rollouts of measured less exact is 0 within its error, and no estimator's error is large."""

    def perturbed():
        flags = {"log_gradient_variance": 1, "value_head_init_std": 0.5, "baseline_decay": 0.5}
        trainer = bandit.trainer_of("dae", 1, str(tmp_path), **flags)
        perturb(trainer.policy, only="lora", scale=0.2)
        perturb(trainer.policy, only="advantage_head.direction", scale=0.3)
        return trainer

    prompt = perturbed().prompt_set["prompt_ids"][0]
    likely = perturbed().policy.model(torch.tensor([prompt])).logits[0, -1].argmax().item()
    monkeypatch.setattr(
        bandit, "WORD", make_tokenizer().convert_ids_to_tokens(likely)
    )  # a rare one takes more rollouts
    trainer = perturbed()
    found = bandit.measure(trainer, 1.0)
    for iteration in range(24):
        trainer.make_experience(iteration)
    assert len(found) == 24
    assert set(found[0].exact) == set(found[0].measured) >= {"running_mean", "value", "group", "leave_one_out", "dae"}
    for name in found[0].exact:
        ratios = torch.tensor([each.measured[name] / each.exact[name] for each in found])
        error = ratios.std() / len(ratios) ** 0.5
        assert error < 0.2, name
        assert abs(ratios.mean() - 1) < 4 * error, name
