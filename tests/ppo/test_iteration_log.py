import pytest
import torch

from hf_rlhf.ops import clipped_policy_loss
from hf_rlhf.ppo.iteration_log import IterationLog
from hf_rlhf.ppo.metrics import mean_of_each, update_metrics


def started_log():
    log = IterationLog(8)
    log.add_rollout(0, [], {})
    return log


def add_micro_batch(log, ratio):
    log.add_update({"tokens": torch.tensor(2)}, torch.tensor([[1.0, ratio]]).log())


def test_the_first_ratio_error_is_the_largest_of_all_micro_batches_before_the_first_update():
    log = started_log()
    for ratio in (1.0, 1.25, 1.125):
        add_micro_batch(log, ratio)
    log.count("policy/updates")
    add_micro_batch(log, 3.0)
    assert log.finished()["val/first_ratio_error"] == 0.25


def test_a_skipped_update_is_the_first_too():
    log = started_log()
    add_micro_batch(log, 1.25)
    log.count("policy/skipped_updates")
    add_micro_batch(log, 3.0)
    assert log.finished()["val/first_ratio_error"] == 0.25


def test_the_first_ratio_error_is_the_largest_of_all_ranks(monkeypatch):
    of_the_other = {float: 0.5, dict: {}}
    monkeypatch.setattr(
        "hf_rlhf.ppo.iteration_log.gather_in_order", lambda share: [*share, of_the_other[type(share[0])]]
    )
    log = started_log()
    add_micro_batch(log, 1.25)
    assert log.finished()["val/first_ratio_error"] == 0.5


def test_what_rewards_log_is_averaged_over_all_ranks_together():
    ranks = [{"length": [1.0, 2.0, 3.0]}, {"length": [10.0], "rare": [5.0]}, {}]
    assert mean_of_each(ranks) == {"length": 4.0, "rare": 5.0}


def test_what_rewards_log_is_in_the_metrics_of_its_iteration_alone():
    log = started_log()
    log.add_reward_metrics({"length": [1.0, 2.0]})
    add_micro_batch(log, 1.0)
    assert log.finished()["length"] == 1.5
    log.start()
    log.add_rollout(1, [], {})
    add_micro_batch(log, 1.0)
    assert "length" not in log.finished()


@pytest.mark.parametrize("step", [1e-5, 1e-4, 1e-2, 1.0])
def test_the_variance_of_ratios_close_to_one_keeps_its_digits(step):
    """Keep the digits of a small variance in fp32.

    The difference of `E[r^2]` and `E[r]^2` would be off by 1e-7, and that is more than all of a small one.
    """
    generator = torch.Generator().manual_seed(0)
    log_ratio = step * torch.randn(4, 1000, generator=generator)
    mask, zeros = torch.ones(4, 1000, dtype=torch.bool), torch.zeros(4, 1000)
    stats = clipped_policy_loss(log_ratio, zeros, zeros, mask, 0.2).stats
    names = ("ratio", "ratio_deviation_squared")
    sums = {"tokens": 4000.0} | {f"val/{name}": stats[name].item() for name in names}
    exact = log_ratio.double().exp().var(correction=0).item()
    assert update_metrics(sums)["val/ratio_var"] == pytest.approx(exact, rel=1e-3)
