"""Groups of rated completions: what the trainer is given, and that batches, accumulation and resumes change nothing."""

import pytest
import torch
from datasets import Dataset
from tiny import make_lora, make_model, make_tokenizer, metrics_of, trained
from trl import RewardConfig

from hf_rlhf.errors import InputError
from hf_rlhf.evaluation.reward_model import RatedGroups
from hf_rlhf.models.load import load_sequence_classifier
from hf_rlhf.training.rating_trainer import GroupCollator
from hf_rlhf.training.trl_setup import make_reward_trainer

WORDS = ["happy", "sad", "good", "bad"]


def groups(count=8):
    """Groups of two to four completions of different length; "happy" is best, "sad" is worst."""
    rows = []
    for i in range(count):
        words = WORDS[: 2 + i % 3]
        completions = [" " + " ".join([word] * (1 + (i + j) % 3)) for j, word in enumerate(words)]
        ratings = [{"happy": 4.0, "good": 3.0, "bad": 2.0, "sad": 1.0}[word] for word in words]
        rows.append({"prompt": "the cat is", "completions": completions, "ratings": ratings})
    return rows


def labeled(rows):
    return [row | {"ratings": [float(rating > 2) for rating in row["ratings"]]} for row in rows]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    make_model(make_tokenizer()).save_pretrained(folder)
    return str(folder)


def make(base, folder, loss, rows=None, *, lora=False, eval_rows=None, **more):
    settings = {"use_cpu": True, "bf16": False, "report_to": "none", "logging_nan_inf_filter": False, "seed": 1}
    settings |= {"learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, **more}
    torch.manual_seed(0)
    classifier = load_sequence_classifier(base, dtype="float32")
    rows = (labeled if loss == "binary" else list)(rows or groups())
    sets = [Dataset.from_list(rows), None if eval_rows is None else Dataset.from_list(eval_rows)]
    config = make_lora() if lora else None
    return make_reward_trainer(classifier, make_tokenizer(), RewardConfig(str(folder), **settings), *sets, config, loss=loss)  # fmt: skip


def test_each_completion_is_encoded_once_and_ends_as_it_is_scored(base, tmp_path):
    trainer = make(base, tmp_path, "k_wise", groups(3), per_device_train_batch_size=3)
    (batch,) = trainer.get_train_dataloader()
    assert batch["input_ids"].shape[0] == batch["mask"].sum() == 2 + 3 + 4
    ends = batch["attention_mask"].sum(1) - 1
    last = batch["input_ids"][torch.arange(9), ends]
    assert (last == trainer.processing_class.eos_token_id).all()


def test_a_collator_keeps_ratings_beside_their_completions():
    ids = [[[5], [6, 7]], [[8, 9, 10]]]
    batch = GroupCollator(0, 4)([{"completions_ids": i, "ratings": r} for i, r in zip(ids, ([2, 1], [3]), strict=True)])
    assert batch["ratings"].tolist() == [[2, 1], [3, 0]]
    assert batch["mask"].tolist() == [[True, True], [True, False]]
    assert batch["input_ids"].tolist() == [[5, 0, 0, 0], [6, 7, 0, 0], [8, 9, 10, 0]]
    assert batch["attention_mask"].sum(1).tolist() == [1, 2, 3]


@pytest.mark.parametrize("loss", ["k_wise", "plackett_luce", "regression", "binary"])
@pytest.mark.parametrize("lora", [True, False])
def test_every_loss_learns_with_an_adapter_and_with_every_weight(base, tmp_path, loss, lora):
    rows = groups()
    trainer = make(base, tmp_path, loss, rows, lora=lora, num_train_epochs=12, learning_rate=1e-2)
    trainer.train()
    logged = [row for row in metrics_of(tmp_path) if "loss" in row]
    assert logged[-1]["loss"] < 0.5 * logged[0]["loss"]
    assert logged[-1]["accuracy"] > 0.9


@pytest.mark.parametrize("loss", ["k_wise", "regression"])
def test_accumulation_changes_no_loss_metric_or_weight(base, tmp_path, loss):
    runs = []
    for number, (size, steps) in enumerate([(4, 1), (2, 2), (1, 4)]):
        folder = tmp_path / str(number)
        trainer = make(
            base, folder, loss, per_device_train_batch_size=size, gradient_accumulation_steps=steps, max_steps=3
        )
        trainer.train()
        keys = ("loss", "accuracy", "mean_reward", "min_reward", "margin", "num_tokens")
        runs.append(
            ([[row[key] for key in keys] for row in metrics_of(folder) if "loss" in row], trained(trainer.model))
        )
    for metrics, weights in runs[1:]:
        torch.testing.assert_close(torch.tensor(metrics), torch.tensor(runs[0][0]), rtol=1e-5, atol=1e-5)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, runs[0][1][name], rtol=1e-5, atol=1e-5)


def test_every_group_of_the_last_update_of_an_epoch_is_counted(base, tmp_path):
    """Seven groups in batches of two leave one that is half full, and the three before it are whole."""
    found = []
    for size, steps in ((7, 1), (2, 4)):
        folder = tmp_path / str(size)
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 1}
        make(base, folder, "k_wise", groups(7), **settings).train()
        (row,) = [row for row in metrics_of(folder) if "loss" in row]
        found.append([row[key] for key in ("accuracy", "mean_reward", "margin", "num_tokens")])
    assert found[1] == pytest.approx(found[0], abs=1e-5)


def test_an_evaluation_does_not_depend_on_the_size_of_its_batches(base, tmp_path):
    found = []
    for size in (1, 3, 8):
        trainer = make(base, tmp_path, "k_wise", eval_rows=groups(7), per_device_eval_batch_size=size)
        found.append(trainer.evaluate())
    for key in ("eval_loss", "eval_accuracy", "eval_margin", "eval_mean_reward", "eval_max_reward"):
        assert [each[key] for each in found] == pytest.approx([found[0][key]] * 3, abs=1e-5), key


def test_k_wise_on_two_completions_is_trl_on_pairs(base, tmp_path):
    """The same weights after three updates, with centering."""
    pairs = [{"prompt": "the cat is", "chosen": f" happy {word}", "rejected": f" sad {word}"} for word in WORDS * 2]
    rated = [{"prompt": p["prompt"], "completions": [p["rejected"], p["chosen"]], "ratings": [0.0, 1.0]} for p in pairs]
    settings = {"per_device_train_batch_size": 4, "max_steps": 3, "center_rewards_coefficient": 0.1}
    weights = []
    for loss, rows in (("bradley_terry", pairs), ("k_wise", rated)):
        trainer = make(base, tmp_path / loss, loss, rows, **settings)
        trainer.train()
        weights.append(trained(trainer.model))
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-5)


def test_completions_that_are_too_long_and_groups_without_a_difference_are_left_out(base, tmp_path, caplog):
    rows = [
        {"prompt": "the", "completions": [" cat" * 20, " dog", " mat"], "ratings": [3.0, 2.0, 1.0]},
        {"prompt": "the", "completions": [" cat" * 20, " dog"], "ratings": [3.0, 2.0]},
        {"prompt": "the", "completions": [" cat", " dog"], "ratings": [2.0, 2.0]},
    ]
    trainer = make(base, tmp_path, "k_wise", rows, max_length=10)
    assert trainer.train_dataset["row"][:] == [0]
    assert trainer.train_dataset["ratings"][:] == [[2.0, 1.0]]
    assert "2 completions are skipped: longer than max_length=10" in caplog.text


def test_centering_is_refused_where_the_ratings_fix_the_scores(base, tmp_path):
    with pytest.raises(InputError, match=r"center_rewards_coefficient=0\.1 is invalid with reward_loss=regression"):
        make(base, tmp_path, "regression", center_rewards_coefficient=0.1)


def test_a_resumed_run_has_the_bits_of_one_without_a_break(base, tmp_path):
    """The break is between two logs, so that sums of both parts come together."""
    settings = {"per_device_train_batch_size": 4, "max_steps": 4, "logging_steps": 4, "save_strategy": "steps"}
    whole = make(base, tmp_path / "whole", "k_wise", **settings, save_steps=2)
    whole.train()
    resumed = make(base, tmp_path / "whole2", "k_wise", **settings, save_steps=2)
    resumed.train(str(tmp_path / "whole" / "checkpoint-2"))
    assert metrics_of(tmp_path / "whole2")[0] == metrics_of(tmp_path / "whole")[0]
    for name, weight in trained(resumed.model).items():
        assert torch.equal(weight, trained(whole.model)[name])


def test_the_evaluation_reads_only_the_completions_that_the_trainer_kept(base, tmp_path):
    rows = [{"prompt": "the", "completions": [" cat" * 20, " dog", " mat"], "ratings": [3.0, 2.0, 1.0]}]
    trainer = make(base, tmp_path, "k_wise", rows, max_length=10)
    found = RatedGroups.from_dataset(Dataset.from_list(rows), trainer.train_dataset["kept"])
    assert (found.completions, found.ratings, found.groups) == ([" dog", " mat"], [2.0, 1.0], [0, 0])
