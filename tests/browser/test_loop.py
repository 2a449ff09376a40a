"""Sixty pairs that are labelled in the browser are enough for a reward model of a simple rule."""

import json
import random

import pytest
from tiny import make_model, make_tokenizer

from hf_rlhf.cli import main
from hf_rlhf.feedback import Form, Task
from hf_rlhf.feedback.conversion import convert

GOOD, BAD = "yes thank you", "no go away"


def pairs(count, seed):
    rng = random.Random(seed)
    prompts = [
        [{"role": "user", "content": f"please {rng.choice('abcdefgh')} {100 * seed + number}"}]
        for number in range(count)
    ]
    return [Task(Form("pairwise"), prompt, (GOOD, BAD) if rng.random() < 0.5 else (BAD, GOOD)) for prompt in prompts]


@pytest.mark.slow
def test_sixty_pairs_train_a_reward_model_that_knows_the_rule(store, labeller, tmp_path):
    store.add_tasks(pairs(60, seed=0))
    ann = labeller()
    for _ in range(60):
        ann.press("1" if ann.replies[0] == GOOD else "0")
    ann.wait_saved()
    rows = convert(store).preferences
    assert len(rows) == 60
    held_out = [
        {
            "prompt": task.prompt,
            "chosen": [{"role": "assistant", "content": GOOD}],
            "rejected": [{"role": "assistant", "content": BAD}],
        }
        for task in pairs(30, seed=1)
    ]
    for name, part in (("train", rows), ("test", held_out)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    status = main(
        [
            "reward", "--model_name_or_path", str(tmp_path / "model"), "--dataset_name", str(tmp_path),
            "--output_dir", str(tmp_path / "out"), "--dtype", "float32", "--use_cpu", "true", "--report_to", "none",
            "--learning_rate", "1e-2", "--num_train_epochs", "1", "--per_device_train_batch_size", "4",
            "--dataset_test_split", "test", "--eval_strategy", "epoch", "--save_strategy", "no", "--disable_tqdm", "true",
        ]
    )  # fmt: skip
    assert status == 0
    metrics = [
        json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    accuracy = [row["eval_accuracy"] for row in metrics if "eval_accuracy" in row]
    assert accuracy[-1] >= 0.9, metrics[-2:]
