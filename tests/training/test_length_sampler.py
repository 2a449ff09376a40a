"""Batches of rows of like length: less padding, every row once, and one order for a run, its resume and its ranks."""

import random

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from checkpoint.runs import SAVES
from datasets import Dataset
from tiny import make_lora, make_model, make_tokenizer, metrics_of, trained
from torch.utils.data import DataLoader

from hf_rlhf.models.load import load_sequence_classifier
from hf_rlhf.recipes.arguments import RewardTrainingArguments, SFTTrainingArguments
from hf_rlhf.training.length_sampler import LengthSampler
from hf_rlhf.training.trl_setup import make_reward_trainer
from hf_rlhf.training.trl_trainers import SFTTrainer

LENGTHS = random.Random(0).choices([2, 5, 11, 23, 47], k=40)


def texts(length):
    return " ".join(["happy"] * length), " ".join(["sad"] * (length // 2 + 1))


def make(kind, folder, strategy="group_by_length", **more):
    """A trainer on rows of mixed length: ten updates an epoch."""
    flags = {**SAVES, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2,
             "logging_steps": 4, "save_steps": 5, "learning_rate": 1e-2, "train_sampling_strategy": strategy,
             "bf16": False, **more}  # fmt: skip
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    model = make_model(tokenizer, max_position_embeddings=64)
    if kind == "sft":
        rows = Dataset.from_list([{"text": texts(length)[0]} for length in LENGTHS])
        args = SFTTrainingArguments(output_dir=str(folder), **flags)
        return SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer, peft_config=make_lora())
    model.save_pretrained(folder / "base")
    pairs = [{"prompt": "the ", "chosen": good, "rejected": bad} for good, bad in map(texts, LENGTHS)]
    loss, rows = "bradley_terry", pairs
    if kind == "groups":
        loss = "k_wise"
        rows = [
            {"prompt": row["prompt"], "completions": [row["chosen"], row["rejected"]], "ratings": [1.0, 0.0]}
            for row in pairs
        ]
    return make_reward_trainer(
        load_sequence_classifier(str(folder / "base"), dtype="float32"),
        tokenizer,
        RewardTrainingArguments(output_dir=str(folder), **flags),
        Dataset.from_list(rows),
        Dataset.from_list(rows[:7]),
        make_lora(lora_dropout=0.2),
        loss=loss,
    )


def masks(loader):
    return [batch["attention_mask"] for batch in loader]


@pytest.mark.parametrize("kind", ["sft", "reward", "groups"])
def test_batches_hold_rows_of_like_length_and_each_row_once(kind, tmp_path):
    drawn = masks(make(kind, tmp_path, "random").get_train_dataloader())
    grouped = masks(make(kind, tmp_path).get_train_dataloader())
    assert sum(mask.numel() for mask in grouped) < 0.8 * sum(mask.numel() for mask in drawn)
    count = [sorted(length for mask in each for length in mask.sum(1).tolist()) for each in (drawn, grouped)]
    assert count[0] == count[1]
    assert grouped[0].shape[1] == max(mask.shape[1] for mask in grouped)  # too little memory shows at once


@pytest.mark.parametrize("kind", ["sft", "reward", "groups"])
def test_a_run_resumed_within_an_epoch_ends_in_the_same_bits(kind, tmp_path):
    evaluated = {} if kind == "sft" else {"eval_strategy": "steps", "eval_steps": 5}
    whole = make(kind, tmp_path, **evaluated)
    whole.train()
    rows, expected = metrics_of(tmp_path), trained(whole.model)
    torch.rand(3)  # that the order of rows does not see
    resumed = make(kind, tmp_path, **evaluated)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-15"))
    assert resumed.resumed_at == 15
    assert whole._lengths.epoch == resumed._lengths.epoch == 1  # the second epoch, with an order of its own
    assert all(torch.equal(weight, expected[name]) for name, weight in trained(resumed.model).items())
    assert metrics_of(tmp_path) == rows


def test_two_ranks_share_one_order_and_each_epoch_has_its_own():
    def batches(rank, epoch):
        torch.manual_seed(rank)  # what differs between ranks
        sampler = LengthSampler(LENGTHS, batch_size=8, seed=3)
        sampler.epoch = epoch
        loader = DataLoader(list(range(40)), batch_size=4, sampler=sampler)
        shards = prepare_data_loader(loader, num_processes=2, process_index=rank, put_on_device=False)
        shards.set_epoch(epoch)
        return [batch.tolist() for batch in shards]

    for epoch in (0, 1):
        assert sorted(row for rank in (0, 1) for batch in batches(rank, epoch) for row in batch) == list(range(40))
    assert batches(0, 0) != batches(0, 1)
    assert batches(0, 1) == batches(0, 1)
