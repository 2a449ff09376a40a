"""trl's trainers get the ids of this package: what they train on is what the report counted and rewards score."""

import os

import pytest
from datasets import Dataset
from tiny import make_model, make_tokenizer
from tokenizers.processors import TemplateProcessing
from trl import RewardConfig, SFTConfig

from hf_rlhf.errors import InputError
from hf_rlhf.models.load import load_sequence_classifier
from hf_rlhf.training.trl_setup import require_positions
from hf_rlhf.training.trl_trainers import RewardTrainer, SFTTrainer

WHOLE = "<|im_start|> the cat sat <|im_end|>"


@pytest.fixture
def tokenizer():
    """One that begins and ends every text itself."""
    tokenizer = make_tokenizer()
    ids = [(word, tokenizer.convert_tokens_to_ids(word)) for word in ("<|im_start|>", "<|im_end|>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=ids
    )
    return tokenizer


def settings(kind, folder, **more):
    own = {"use_cpu": True, "bf16": False, "report_to": "none", "logging_nan_inf_filter": False}
    return kind(str(folder), **own, **more)


def reward_trainer(tokenizer, folder, rows, **more):
    make_model(tokenizer).save_pretrained(folder)
    classifier = load_sequence_classifier(str(folder), dtype="float32")
    sets = {"train_dataset": Dataset.from_list(rows), "eval_dataset": Dataset.from_list(rows[:1])}
    return RewardTrainer(classifier, settings(RewardConfig, folder, **more), processing_class=tokenizer, **sets)


def test_a_reward_trainer_reads_text_with_one_begin_and_one_end(tokenizer, tmp_path):
    rows = [{"prompt": "<|im_start|> the", "chosen": " cat sat", "rejected": " dog", "margin": 0.5}] * 2
    rows += [{"prompt": "the", "chosen": " cat" * 20, "rejected": " dog", "margin": 0.5}]
    trainer = reward_trainer(tokenizer, tmp_path, rows, max_length=10, per_device_train_batch_size=2)
    (batch,) = trainer.get_train_dataloader()
    assert tokenizer.decode(batch["input_ids"][0]) == WHOLE
    assert tokenizer.decode(trainer.eval_dataset[0]["chosen_ids"]) == WHOLE
    assert batch["margin"].tolist() == [0.5, 0.5]
    assert trainer.train_dataset["row"][:] == [0, 1]  # the third is too long


@pytest.mark.parametrize("row", [{"text": "<|im_start|> the cat sat"}, {"prompt": "the", "completion": " cat sat"}])
def test_an_sft_trainer_reads_text_with_one_begin_and_one_end(tokenizer, tmp_path, row):
    rows = Dataset.from_list([row])
    trainer = SFTTrainer(
        make_model(tokenizer), settings(SFTConfig, tmp_path), train_dataset=rows, processing_class=tokenizer
    )
    (batch,) = trainer.get_train_dataloader()
    assert tokenizer.decode(batch["input_ids"][0]) == WHOLE
    given = 0 if "text" in row else 2
    assert batch["labels"][0].tolist() == [-100] * given + batch["input_ids"][0].tolist()[given:]


@pytest.mark.parametrize("kind", ["pair_ids", "tokenize_texts"])
def test_dataset_num_proc_tokenizes_in_so_many_processes(tokenizer, tmp_path, monkeypatch, kind):
    import hf_rlhf.data.training_rows as module

    tokenize = getattr(module, kind)

    def tokenize_and_sign(*args, **kwargs):
        (tmp_path / f"by-{os.getpid()}").touch()
        return tokenize(*args, **kwargs)

    monkeypatch.setattr(module, kind, tokenize_and_sign)
    if kind == "pair_ids":
        reward_trainer(tokenizer, tmp_path, [{"chosen": "the cat", "rejected": "the dog"}] * 4, dataset_num_proc=2)
    else:
        rows = Dataset.from_list([{"text": "the cat"}] * 4)
        args = settings(SFTConfig, tmp_path, dataset_num_proc=2)
        SFTTrainer(make_model(tokenizer), args, train_dataset=rows, processing_class=tokenizer)
    signed = {path.name for path in tmp_path.glob("by-*")} - {f"by-{os.getpid()}"}
    assert len(signed) >= 2


def test_rows_beyond_a_table_of_positions_are_told_before_training(tokenizer, tmp_path):
    from transformers import RobertaConfig, RobertaForSequenceClassification

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = RobertaForSequenceClassification(
        RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=12, num_labels=1, pad_token_id=1, **shape)
    )
    for words, fits in (
        (7, True),
        (8, False),
    ):  # 12 rows, of which 10 are places: two special tokens, the prompt, words
        rows = Dataset.from_list([{"prompt": "the", "chosen": " cat" * words, "rejected": " dog"}])
        trainer = RewardTrainer(
            encoder, settings(RewardConfig, tmp_path), train_dataset=rows, processing_class=tokenizer
        )
        if fits:
            require_positions(trainer)
            trainer.evaluate(trainer.train_dataset)
        else:
            with pytest.raises(InputError, match=r"has 11 tokens, and the model has positions for 10\. Set"):
                require_positions(trainer)


def test_rotary_positions_have_no_table(tokenizer, tmp_path):
    rows = [{"prompt": "the", "chosen": " cat" * 200, "rejected": " dog"}]
    require_positions(reward_trainer(tokenizer, tmp_path, rows))
