"""`RewardTrainer` gives the numbers and the weights of a plain run of trl on the same data and seed."""

import json

import pytest
import torch
import trl
from datasets import Dataset
from tiny import make_lora, make_model, make_tokenizer, trained
from tiny_data import conversational_pairs, plain_pairs

from hf_rlhf.models.load import load_sequence_classifier
from hf_rlhf.training.trl_setup import make_reward_trainer


@pytest.mark.parametrize(("make_pairs", "lora"), [(conversational_pairs, True), (plain_pairs, False)])
def test_losses_and_weights_are_those_of_trl_to_the_bit(tmp_path, make_pairs, lora):
    """With margins and centering, over two epochs with an accumulated update and an evaluation.

    Both get a model that was loaded alike. trl's own trainer gets a LoRA config that names the score head, which
    `make_reward_trainer` adds by itself.
    """
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path / "base")
    rows = [row | {"margin": 0.1 * i} for i, row in enumerate(make_pairs(16))]
    logs, weights = [], []
    for name in ("trl", "ours"):
        args = trl.RewardConfig(
            str(tmp_path / name), use_cpu=True, bf16=False, report_to="none", logging_nan_inf_filter=False, seed=3,
            per_device_train_batch_size=3, gradient_accumulation_steps=2, num_train_epochs=2, logging_steps=1,
            learning_rate=1e-2, center_rewards_coefficient=0.01, save_strategy="no", eval_strategy="epoch",
            disable_tqdm=True, gradient_checkpointing=False,
        )  # fmt: skip
        torch.manual_seed(0)
        classifier = load_sequence_classifier(str(tmp_path / "base"), dtype="float32")
        train, test = Dataset.from_list(rows[:12]), Dataset.from_list(rows[12:])
        config = make_lora(task_type="SEQ_CLS", modules_to_save=["score"]) if lora else None
        if name == "trl":
            trainer = trl.RewardTrainer(
                model=classifier, args=args, train_dataset=train, eval_dataset=test, processing_class=tokenizer,
                peft_config=config,
            )  # fmt: skip
        else:
            trainer = make_reward_trainer(classifier, tokenizer, args, train, test, make_lora() if lora else None)
        trainer.train()
        kept = ("loss", "eval_loss", "accuracy", "eval_accuracy", "margin", "mean_reward", "grad_norm", "num_tokens")
        logs.append([{key: row[key] for key in kept if key in row} for row in trainer.state.log_history])
        weights.append(trained(trainer.model))
    assert json.dumps(logs[0]) == json.dumps(logs[1])
    assert sum("loss" in row for row in logs[0]) == 4
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
