import torch

from hf_rlhf.ppo.iteration_log import IterationLog
from hf_rlhf.ppo.metrics import mean_of_each


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
