"""A minibatch in which nothing counts moves no weight, whatever momentum and weight decay the optimizer has."""

import pytest
import torch
from datasets import Dataset
from tiny import WORDS, make_trainer, metrics_of, snapshot
from transformers import TrainerCallback

from hf_rlhf.ppo.guard import UpdateGuard
from hf_rlhf.ppo.iteration_log import IterationLog

TEXTS = {"ptx_coef": 0.5, "trainer_kwargs": {"ptx_dataset": Dataset.from_dict({"text": WORDS})}}


def one_of_eight(prompts, completion_ids, number, **columns):
    """A score for one completion of each iteration, so that in every epoch one of two minibatches has none."""
    return [len(ids) / 8 if n == min(number) else None for ids, n in zip(completion_ids, number, strict=True)]


class Moves(TrainerCallback):
    """Weights, and states of the optimizer, that each update changed, and the learning rate after it."""

    def __init__(self, trainer):
        self.trainer, self.before = trainer, self.now(trainer)
        self.seen = []
        trainer.add_callback(self)

    @staticmethod
    def now(trainer):
        states = {} if trainer.optimizer is None else trainer.optimizer.state_dict()["state"]
        momentum = {f"optimizer.{i}.{key}": torch.as_tensor(value).clone()
                    for i, state in states.items() for key, value in state.items()}  # fmt: skip
        return snapshot(trainer.policy) | momentum

    def on_step_end(self, args, state, control, **kwargs):
        after = self.now(self.trainer)
        moved = {name for name, tensor in after.items()
                 if name not in self.before or not torch.equal(tensor, self.before[name])}  # fmt: skip
        self.seen.append((moved, self.trainer.lr_scheduler.get_last_lr()[0]))
        self.before = after


def moves_of(folder, **flags):
    flags = {"reward": one_of_eight, "max_steps": 12, "weight_decay": 0.1, "lr_scheduler_type": "linear", **flags}
    trainer = make_trainer(folder, **flags)
    moves = Moves(trainer)
    trainer.train()
    return [moved for moved, _ in moves.seen], [rate for _, rate in moves.seen], metrics_of(folder)[:-1]


CASES = {
    "lora": {},
    "full": {"lora": None, "learning_rate": 1e-2},
    "accumulated": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    "critic of its own": {"critic": "adapter", "kl_in_loss": True, "kl_estimator": "k2", "entropy_coef": 0.1},
}


@pytest.mark.parametrize("flags", CASES.values(), ids=CASES)
def test_half_of_the_updates_have_no_data_and_are_not_made(tmp_path, flags):
    moved, rates, rows = moves_of(tmp_path, **flags)
    for row, updates in zip(rows, (moved[:4], moved[4:8], moved[8:]), strict=True):
        assert [bool(update) for update in updates].count(True) == 2
        assert bool(updates[0]) != bool(updates[1])  # one in each epoch
        assert (row["policy/updates"], row["policy/empty_updates"], row["policy/skipped_updates"]) == (2, 2, 0)
    whole = moved[0] | moved[1]
    assert any("critic" in name for name in whole)
    assert any("critic" not in name and "optimizer" not in name for name in whole)
    peak = flags.get("learning_rate", 1e-2)
    assert rates == pytest.approx([peak * (1 - (update + 1) / 12) for update in range(12)])  # counts every one


def test_texts_are_data_for_the_policy_and_not_for_the_critic(tmp_path):
    moved, _, rows = moves_of(tmp_path, **TEXTS)
    assert [(row["policy/updates"], row["policy/empty_updates"]) for row in rows] == [(4, 0)] * 3
    of_policy = [any("lora" in name for name in update) for update in moved]
    of_critic = [any("critic" in name for name in update) for update in moved]
    assert all(of_policy)
    assert [sum(of_critic[4 * i : 4 * i + 4]) for i in range(3)] == [2, 2, 2]


def test_while_the_critic_warms_up_texts_are_no_data(tmp_path):
    moved, _, rows = moves_of(tmp_path, critic_warmup_iterations=2, **TEXTS)
    assert [(row["policy/updates"], row["policy/empty_updates"]) for row in rows] == [(2, 2), (2, 2), (4, 0)]
    assert [bool(update) for update in moved[:8]].count(True) == 4
    assert not any("lora" in name for update in moved[:8] for name in update)


def test_what_is_left_when_an_iteration_was_stopped_is_not_counted_as_empty():
    log = IterationLog(8)
    log.metrics = {"policy/updates": 0, "policy/empty_updates": 0}
    guard = UpdateGuard(type("Config", (), {"ratio_threshold": None, "early_stop_kl": 0.1}), log, list)
    for tokens, kl in ((0, 0.0), (4, 0.0), (4, 1.0), (0, 0.0), (4, 0.0)):
        if tokens and not guard.stopped:
            guard.add({"tokens": torch.tensor(tokens), "policy/approxkl_avg": torch.tensor(kl * tokens)})
        guard.on_pre_optimizer_step(None, None, None)
    assert log.metrics == {"policy/updates": 1, "policy/empty_updates": 1}
