"""A model of labels: trained, its threshold found, and used as a reward and as a filter."""

import json

import pytest
from tiny import make_model, make_tokenizer

from hf_rlhf.cli import main
from hf_rlhf.errors import InputError
from hf_rlhf.models.reward_model import load_reward_model
from hf_rlhf.rewards.learned import LearnedReward
from hf_rlhf.rewards.moderation import Moderation


def labeled(count, first=0):
    """Completions to be flagged where they are long; prompts that differ."""
    return [
        {"prompt": f"say {first + n}", "completion": " ok" + " no" * (6 if n % 2 else 0), "label": bool(n % 2)}
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moderation")
    tokenizer = make_tokenizer()
    for each in (make_model(tokenizer), tokenizer):
        each.save_pretrained(folder / "model")
    for name, rows in (("train", labeled(32)), ("test", labeled(40, 100))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = [
        "reward", "--dataset_name", str(folder / "train.jsonl"), "--eval_dataset_name", str(folder / "test.jsonl"),
        "--model_name_or_path", str(folder / "model"), "--dtype", "float32", "--reward_loss", "binary",
        "--per_device_train_batch_size", "8", "--max_steps", "20", "--learning_rate", "3e-2", "--use_cpu", "true",
        "--report_to", "none", "--save_strategy", "no", "--disable_tqdm", "true", "--min_recall", "0.9",
        "--output_dir", str(folder / "out"),
    ]  # fmt: skip
    assert main(argv) == 0
    return folder


def test_the_run_leaves_the_threshold_that_its_saved_model_has(trained):
    found = json.loads((trained / "out" / "threshold.json").read_text())
    results = json.loads((trained / "out" / "evaluation.json").read_text())
    assert (results["eval_threshold"], results["eval_recall"]) == (found["threshold"], found["measured_on"]["recall"])
    assert found["chosen_on"]["recall"] >= 0.9
    assert found["chosen_on"]["rows"] + found["measured_on"]["rows"] == 40
    model, tokenizer = load_reward_model(str(trained / "out"), dtype="float32")
    rows = labeled(40, 100)
    rewards = LearnedReward(model, tokenizer)([row["prompt"] for row in rows], [row["completion"] for row in rows])
    assert sum(reward >= found["threshold"] for reward in rewards) == (
        found["chosen_on"]["flagged"] + found["measured_on"]["flagged"]
    )
    assert min(rewards) < found["threshold"]


def test_the_reward_flags_what_reaches_the_threshold(trained):
    out = str(trained / "out")
    rows = labeled(8)
    prompts, completions = [row["prompt"] for row in rows], [row["completion"] for row in rows]
    flagged = Moderation(model=out)(prompts, completions)
    assert flagged == [float(row["label"]) for row in rows]
    assert Moderation(model=out, threshold=1e9)(prompts, completions) == [0.0] * 8
    assert Moderation(model=out).cache_key != Moderation(model=out, threshold=0.25).cache_key


def test_score_filters_rows_with_it(trained, tmp_path):
    output = tmp_path / "clean.jsonl"
    argv = ["score", "--dataset_name", str(trained / "test.jsonl"), "--output", str(output), "--max_score", "0.5"]
    assert main([*argv, "--reward_funcs", f"moderation:model={trained / 'out'}", "--use_cpu", "true"]) == 0
    kept = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(kept) == 20
    assert not any(row["label"] for row in kept)


def test_a_model_without_a_threshold_is_refused(trained):
    with pytest.raises(InputError, match=r"model=.* is invalid for the reward moderation: it has no threshold\.json"):
        Moderation(model=str(trained / "model"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--min_recall", "0.5"], "min_recall=0.5 is invalid with reward_loss=bradley_terry"),
        (["--reward_loss", "binary", "--min_recall", "1.5"], "min_recall=1.5 is invalid: it must be above 0"),
        (
            ["--reward_loss", "binary", "--min_recall", "0.5", "--min_precision", "0.5"],
            "min_precision=0.5 is invalid with min_recall=0.5",
        ),
    ],
)
def test_limits_that_cannot_be_kept_are_refused_before_anything_runs(flags, message, capsys, tmp_path):
    assert main(["reward", "--dataset_name", "none.jsonl", "--output_dir", str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err
