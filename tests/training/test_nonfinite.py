"""NaN and infinity reach no weight, are not logged as 0, and end the run when they stay."""

import math

import pytest
import torch
from checkpoint.runs import SAVES, train_reward
from datasets import Dataset
from tiny import make_lora, make_model, make_tokenizer, make_trainer, metrics_of, snapshot
from tiny_data import plain_pairs

from hf_rlhf.errors import InputError
from hf_rlhf.training.durable import DurableTrainer


def poison(monkeypatch, updates, bad=math.nan, where="loss"):
    """Make the loss, or one gradient with a finite loss, bad in some updates of any run.

    Keeps the weights before and after.
    """
    step, weights = DurableTrainer.training_step, {}

    def poisoned(self, *args, **kwargs):
        weights.setdefault(self.state.global_step, snapshot(self.model))
        loss = step(self, *args, **kwargs)
        if self.state.global_step + 1 not in updates:
            return loss
        parameter = next(p for p in self.model.parameters() if p.grad is not None)
        parameter.grad.view(-1)[0] = bad
        return loss * bad if where == "loss" else loss

    monkeypatch.setattr(DurableTrainer, "training_step", poisoned)
    return weights


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_an_update_is_not_made_and_counted(tmp_path, monkeypatch, bad, where, clip):
    weights = poison(monkeypatch, {2, 3}, bad, where)
    trainer = make_trainer(tmp_path, max_steps=8, max_grad_norm=clip)
    if clip == 0:
        trainer.args.max_grad_norm = 0
    trainer.train()
    same = [all(torch.equal(weights[step][name], weights[step + 1][name]) for name in weights[0]) for step in range(7)]
    assert same[1:3] == [True, True]
    assert not same[0]
    assert not any(same[3:6])
    first, second = [row for row in metrics_of(tmp_path) if "iteration" in row]
    assert (first["nonfinite_updates"], second["nonfinite_updates"]) == (2, 2)
    assert (first["policy/updates"], second["policy/updates"]) == (2, 4)
    assert first["loss"] is None if where == "loss" and math.isnan(bad) else first["loss"] != 0
    assert second["loss"] is not None


def test_three_in_a_row_end_the_run_and_the_last_checkpoint_goes_on(tmp_path, monkeypatch):
    poison(monkeypatch, {5, 6, 7})
    flags = {**SAVES, "save_steps": 4, "max_steps": 8}
    with pytest.raises(FloatingPointError, match=r"update 7 .*3 in a row.*checkpoint-4. --resume auto"):
        make_trainer(tmp_path, **flags).train()
    monkeypatch.undo()
    trainer = make_trainer(tmp_path, **flags)
    trainer.train(resume_from_checkpoint="auto")
    assert trainer.nonfinite_updates == 0
    assert trainer.state.global_step == 8


def test_two_in_a_row_before_a_resume_and_one_after_are_three(tmp_path, monkeypatch):
    poison(monkeypatch, {3, 4})
    flags = {**SAVES, "save_steps": 4}
    make_trainer(tmp_path, **flags, max_steps=4).train()
    monkeypatch.undo()
    poison(monkeypatch, {5})
    with pytest.raises(FloatingPointError, match=r"update 5 .*3 in a row"):
        make_trainer(tmp_path, **flags, max_steps=8).train(resume_from_checkpoint="auto")


@pytest.mark.parametrize("kind", ["reward", "sft"])
def test_trls_trainers_keep_nan_out_too(tmp_path, monkeypatch, kind):
    weights = poison(monkeypatch, {3})
    if kind == "reward":
        train_reward(tmp_path, num_train_epochs=1)
    else:
        make_sft_trainer(tmp_path).train()
    assert all(torch.equal(weights[2][name], weights[3][name]) for name in weights[2])
    assert not all(torch.equal(weights[3][name], weights[4][name]) for name in weights[3])
    rows = [row for row in metrics_of(tmp_path) if "loss" in row]
    assert [row["nonfinite_updates"] for row in rows] == [0, 1, 1]
    assert [row["loss"] is None for row in rows] == [False, True, False]


def make_sft_trainer(folder, **given):
    from hf_rlhf.recipes.arguments import SFTTrainingArguments
    from hf_rlhf.training.trl_trainers import SFTTrainer

    tokenizer = make_tokenizer()
    flags = {**SAVES, "per_device_train_batch_size": 4, "logging_steps": 2, "save_steps": 2, "max_steps": 6, **given}
    return SFTTrainer(
        model=make_model(tokenizer),
        args=SFTTrainingArguments(output_dir=str(folder), learning_rate=1e-2, **flags),
        train_dataset=Dataset.from_list([{"text": row["prompt"] + row["chosen"]} for row in plain_pairs(24)]),
        processing_class=tokenizer,
        peft_config=make_lora(),
    )


def test_an_sft_update_without_labels_is_not_made(tmp_path, monkeypatch, caplog):
    """Sets that trl prepares have no such rows, others may; the loss is 0, with a gradient of zeros."""
    weights = poison(monkeypatch, {})
    trainer = make_sft_trainer(tmp_path, gradient_accumulation_steps=2)
    collate, batches = trainer.data_collator, []

    def without_labels(rows):
        batches.append(collate(rows))
        if len(batches) in (1, 5, 6):
            batches[-1]["labels"][:] = -100
        return batches[-1]

    trainer.data_collator = without_labels
    trainer.train()
    same = [all(torch.equal(weights[step][name], weights[step + 1][name]) for name in weights[0]) for step in range(5)]
    assert same == [False, False, True, False, False]
    assert trainer.nonfinite_updates == 0
    assert "update 3 is skipped: none of its tokens has a label" in caplog.text


def test_a_resumed_sft_run_ends_in_the_same_bits(tmp_path):
    whole = make_sft_trainer(tmp_path / "whole")
    whole.train()
    rows = metrics_of(tmp_path / "whole")
    resumed = make_sft_trainer(tmp_path / "whole")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    expected = snapshot(whole.model)
    assert all(torch.equal(weight, expected[name]) for name, weight in snapshot(resumed.model).items())
    assert metrics_of(tmp_path / "whole") == rows


def test_a_nan_margin_does_not_pass_for_a_loss_of_zero(tmp_path):
    from transformers import LlamaForSequenceClassification

    from hf_rlhf.recipes.arguments import RewardTrainingArguments
    from hf_rlhf.training.trl_setup import make_reward_trainer

    tokenizer = make_tokenizer()
    config = make_model(tokenizer).config
    config.num_labels = 1
    args = RewardTrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=4, max_steps=6, **SAVES)
    rows = [row | {"margin": math.nan} for row in plain_pairs(16)]
    trainer = make_reward_trainer(
        LlamaForSequenceClassification(config), tokenizer, args, Dataset.from_list(rows), peft_config=make_lora()
    )
    before = snapshot(trainer.model)
    with pytest.raises(FloatingPointError, match="update 3 "):
        trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in snapshot(trainer.model).items())


def test_damaged_weights_are_not_saved(tmp_path):
    trainer = make_trainer(tmp_path, **SAVES, save_steps=4, max_steps=4)
    trainer.train()
    trainer.policy.value_head.summary.weight.data[0, 0] = math.inf
    with pytest.raises(FloatingPointError, match=r"summary\.weight holds NaN or infinity after update 4"):
        trainer._save_checkpoint(trainer.model, None)
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-4"]


@pytest.mark.parametrize(
    "flag", [{"logging_nan_inf_filter": True}, {"enable_jit_checkpoint": True}, {"push_to_hub": True, "hub_strategy": "every_save"}]
)  # fmt: skip
def test_settings_that_undo_it_are_refused(tmp_path, flag):
    with pytest.raises(InputError, match=list(flag)[-1]):
        train_reward(tmp_path, **flag)
