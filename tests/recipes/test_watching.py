"""PPO with a held-out reward: the checkpoint that is best by it is saved, and the files say so."""

import json

import pytest
from tiny_data import PPO_FLAGS, prompt_rows

from hf_rlhf.cli import main

HELD_OUT = """
def long_replies(prompts, completion_ids, **columns):
    return [float(len(ids)) for ids in completion_ids]


def short_replies(prompts, completion_ids, **columns):
    return [-float(len(ids)) for ids in completion_ids]
"""


@pytest.fixture
def argv(tmp_path, write_rows, flags):
    (tmp_path / "held.py").write_text(HELD_OUT)
    rows = [
        "--dataset_name",
        write_rows(prompt_rows()),
        "--eval_dataset_name",
        write_rows(prompt_rows(8), "eval.jsonl"),
    ]
    evaluated = ["--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "1"]
    own = [part for part in PPO_FLAGS if part not in ("--max_steps", "2")]
    proxy = ["--reward_funcs", f"{tmp_path}/held.py:long_replies", "--kl_coef", "0", "--max_steps", "6"]
    return ["ppo", *rows, *flags, *own, *evaluated, *proxy]


def test_the_policy_of_the_peak_is_saved_and_the_run_may_stop(argv, tmp_path, capsys):
    held_out = ["--held_out_reward", f"{tmp_path}/held.py:short_replies", "--held_out_patience", "2"]
    assert main([*argv, *held_out, "--frontier_best_of_n", "4"]) == 0
    found = json.loads((tmp_path / "out" / "over_optimization.json").read_text())
    scores = [point["held_out"] for point in found["evaluations"]]
    assert found["held_out_reward"] == "short_replies"
    assert found["evaluations"][0]["step"] == 0
    assert found["evaluations"][0]["kl"] == 0
    assert found["peak"]["held_out"] == max(scores)
    assert [point["n"] for point in found["best_of_n"]] == [1, 2, 4]
    assert [point["reward"] for point in found["evaluations"]] == pytest.approx([-score for score in scores])
    assert (tmp_path / "out" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert "held-out reward short_replies" in capsys.readouterr().out
    last = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["eval_rewards/short_replies/mean"] == pytest.approx(max(scores))  # the evaluation of what was saved


def test_what_contradicts_a_held_out_reward_is_refused(argv, tmp_path, failing):
    held_out = ["--held_out_reward", f"{tmp_path}/held.py:short_replies"]
    assert "is trained on" in failing(*argv, "--held_out_reward", f"{tmp_path}/held.py:long_replies")
    assert "without held_out_reward" in failing(*argv, "--held_out_patience", "2")
    assert "at least 2" in failing(*argv, *held_out, "--frontier_best_of_n", "1")
    assert "nothing is evaluated" in failing("ppo", *argv[1:3], *argv[5:], *held_out)
