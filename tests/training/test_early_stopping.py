"""Early stopping ends a run after evaluations that are not better, keeps the best, and survives a resume."""

import json

import pytest
from tiny_data import conversational_pairs, plain_pairs

from hf_rlhf.cli import main

STOPPING = ["--early_stopping_patience", "2", "--eval_strategy", "steps", "--eval_steps", "1", "--save_steps", "1"]


@pytest.fixture
def argv(flags, write_rows, tmp_path):
    """A run that learns the contrary of what is evaluated, so that no evaluation is better than the first."""
    pairs = conversational_pairs(24)
    contrary = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in pairs[16:]]
    flags = [flag for flag in flags if flag not in ("--save_strategy", "no")]
    return [
        "reward", "--dataset_name", write_rows(pairs[:16], "train.jsonl"), "--eval_dataset_name",
        write_rows(contrary, "test.jsonl"), *flags, "--learning_rate", "1e-2", "--max_steps", "8", *STOPPING,
        "--save_strategy", "steps", "--save_merged", "false", "--early_stopping_threshold", "0.5",
    ]  # fmt: skip


def evaluated(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["eval_accuracy"]) for row in rows if "eval_accuracy" in row]


def test_a_run_stops_and_keeps_the_best_and_makes_no_update_when_resumed(argv, tmp_path, capsys):
    assert main(argv) == 0
    assert "stopping early after update 3: eval_accuracy is not better than before in 2 evaluations" in capsys.readouterr().out  # fmt: skip
    found = evaluated(tmp_path / "out")
    assert [step for step, _ in found] == [1, 2, 3]
    kept = json.loads((tmp_path / "out" / "evaluation.json").read_text())["eval_accuracy"]
    assert kept == max(accuracy for _, accuracy in found)
    assert main([*argv, "--resume", "auto"]) == 0
    assert [step for step, _ in evaluated(tmp_path / "out")] == [1, 2, 3]


def test_the_count_of_evaluations_survives_a_break(argv, tmp_path):
    """Broken off after the second evaluation, the run stops after the third, as one without a break does."""
    steps = argv.index("--max_steps") + 1
    assert main([*argv[:steps], "2", *argv[steps + 1 :]]) == 0
    assert main([*argv, "--resume", "auto"]) == 0
    assert [step for step, _ in evaluated(tmp_path / "out")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--eval_strategy", "no"], "nothing is evaluated. Set eval_strategy to epoch or steps"),
        (["--save_strategy", "epoch"], "Set save_strategy to steps"),
        (
            ["--save_steps", "4"],
            "the best evaluation may have none. Set save_steps to 1.",
        ),
        (["--early_stopping_patience", "0"], "must be at least 1 evaluation"),
        (["--early_stopping_threshold", "-1"], "must be 0 or above"),
    ],
)
def test_settings_that_contradict_it_are_one_message(failing, argv, wrong, message):
    assert message in failing(*argv, *wrong)


def test_sft_stops_by_its_loss(flags, write_rows, tmp_path):
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in plain_pairs(24)]
    flags = [flag for flag in flags if flag not in ("--save_strategy", "no")]
    argv = ["sft", "--dataset_name", write_rows(rows[:16]), "--eval_dataset_name", write_rows(rows[16:], "test.jsonl")]
    argv += [*flags, *STOPPING, "--save_strategy", "steps", "--max_steps", "6", "--early_stopping_threshold", "100"]
    assert main(argv) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in rows if "loss" in row or "eval_loss" in row) == 3
