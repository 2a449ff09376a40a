"""`hf-rlhf reward` on rated groups from the command line: every loss, the upper blocks alone, two ranks, bad rows."""

import json
from pathlib import Path

import pytest
from ranks import run_ranks
from tiny import WORDS

from hf_rlhf.cli import main
from hf_rlhf.evaluation.report_card.guard import MISSING, card_status, read_report_card
from hf_rlhf.recipes.reward_results import RESULTS

SCRIPT = Path(__file__).parents[2] / "recipes" / "reward.py"


def rated(count, *, labels=False):
    """Groups of three chat answers; the one that says happy is best."""
    answers, ratings = ["happy", "good", "sad"], [1, 0, 0] if labels else [3, 2, 1]
    return [
        {
            "prompt": [{"role": "user", "content": f"the {WORDS[i % 10]} {WORDS[i // 10]}"}],
            "completions": [[{"role": "assistant", "content": f"{answer} {WORDS[i % 7]}"}] for answer in answers],
            "ratings": ratings,
        }
        for i in range(count)
    ]


@pytest.mark.parametrize(("loss", "layers"), [("k_wise", "all"), ("binary", "1")])
def test_a_loss_of_groups_learns_and_leaves_a_whole_model(flags, write_rows, tmp_path, loss, layers):
    rows = rated(24, labels=loss == "binary")
    argv = ["reward", "--dataset_name", write_rows(rows[:16], "train.jsonl"), "--reward_loss", loss, *flags]
    argv += ["--eval_dataset_name", write_rows(rows[16:], "test.jsonl"), "--eval_strategy", "epoch"]
    assert main([*argv, "--lora_layers", layers, "--num_train_epochs", "15", "--learning_rate", "1e-2"]) == 0
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["eval_accuracy"] > 0.9
    assert found["eval_rows"] == 8
    assert set(found) <= set(RESULTS)
    logged = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    last = [row["eval_accuracy"] for row in logged if "eval_accuracy" in row][-1]
    assert last == pytest.approx(found["eval_accuracy"])
    if loss == "binary":  # which has a threshold instead
        assert card_status(str(tmp_path / "out")).state == MISSING
        return
    card = read_report_card(tmp_path / "out")
    assert card_status(str(tmp_path / "out")).state == card["verdict"]["word"]
    assert card["accuracy"]["n"] == 8  # one pair of each group
    assert {row["name"] for row in card["tables"]["margin"]} <= {"1", "2"}
    assert "## Is it good enough?" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_groups_without_two_ratings_have_no_card_and_the_run_says_so(flags, write_rows, tmp_path, capsys):
    rows = [{**row, "completions": row["completions"][:1], "ratings": row["ratings"][:1]} for row in rated(24)]
    argv = ["reward", "--dataset_name", write_rows(rows[:16], "train.jsonl"), "--reward_loss", "regression", *flags]
    assert main([*argv, "--eval_dataset_name", write_rows(rows[16:], "test.jsonl"), "--max_steps", "1"]) == 0
    assert "no report card: no group of the evaluation set has two completions" in capsys.readouterr().out
    assert not (tmp_path / "out" / "report_card.json").exists()


def test_two_ranks_log_what_one_process_logs(flags, write_rows, tmp_path):
    """Five groups are evaluated: the second rank evens out the last batch with a group that is not counted twice."""
    argv = ["--dataset_name", write_rows(rated(8)), "--reward_loss", "k_wise", "--logging_steps", "1", "--save_merged", "false"]  # fmt: skip
    argv += [*flags, "--bf16", "false", "--max_steps", "2"]
    argv += ["--eval_dataset_name", write_rows(rated(13)[8:], "test.jsonl"), "--eval_strategy", "steps", "--eval_steps", "1"]  # fmt: skip
    logs = []
    for ranks, size in ((1, "4"), (2, "2")):
        folder = tmp_path / f"ranks-{ranks}"
        folder.mkdir()
        own = [*argv, "--output_dir", str(folder / "out"), "--per_device_train_batch_size", size, "--per_device_eval_batch_size", size]  # fmt: skip
        if ranks == 1:
            assert main(["reward", *own]) == 0
        else:
            run_ranks([SCRIPT, *own], folder=folder)
        rows = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
        keys = ("loss", "accuracy", "mean_reward", "num_tokens", "eval_loss", "eval_accuracy", "eval_max_reward")
        logs.append([[row[key] for key in keys if key in row] for row in rows])
    assert len(logs[0]) == len(logs[1])
    for one, two in zip(*logs, strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("row", "argv", "message"),
    [
        ({"ratings": [1, 0, 0.5]}, ("--reward_loss", "binary"), "labels are 0 or 1"),
        ({}, ("--reward_loss", "kwise"), "Did you mean k_wise?"),
    ],
)
def test_bad_groups_are_one_message(failing, flags, write_rows, row, argv, message):
    rows = [each | row for each in rated(8)]
    assert message in failing("reward", "--dataset_name", write_rows(rows), "--reward_loss", "k_wise", *flags, *argv)


def test_an_evaluation_set_without_a_pair_that_fits_is_refused_before_training(failing, flags, write_rows):
    long = [{"role": "assistant", "content": "sad " * 100}]
    groups = [row | {"completions": [row["completions"][0], long, long]} for row in rated(24)[16:]]
    argv = ["--dataset_name", write_rows(rated(16)), "--eval_dataset_name", write_rows(groups, "test.jsonl")]
    said = failing("reward", *argv, "--reward_loss", "k_wise", "--max_length", "50", *flags)
    assert "all 8 evaluation groups are longer than max_length=50" in said
