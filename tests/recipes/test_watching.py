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


def silent(prompts, completions, **columns):
    return [None] * len(completions)
"""
GAME = """
from hf_rlhf.environments import Turn


class Game:
    def reset(self, row, rng):
        return row["prompt"]

    def step(self, completion):
        return Turn(reward=2.0, terminated=True)
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
    assert found["saved"]["held_out"] == max(scores[1:])
    assert [point["n"] for point in found["best_of_n"]] == [1, 2, 4]
    assert [point["reward"] for point in found["evaluations"]] == pytest.approx([-score for score in scores])
    assert (tmp_path / "out" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert "held-out reward short_replies" in capsys.readouterr().out
    last = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["eval_rewards/short_replies/mean"] == pytest.approx(max(scores[1:]))  # the evaluation of what was saved


def test_an_environment_pays_beside_a_reward_that_is_only_measured(argv, tmp_path):
    (tmp_path / "game.py").write_text(GAME)
    held_out = ["--held_out_reward", f"{tmp_path}/held.py:short_replies", "--environment", f"{tmp_path}/game.py:Game"]
    own = argv[: argv.index("--reward_funcs")] + argv[argv.index("--kl_coef") :]
    assert main([*own, *held_out, "--max_steps", "2"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in rows if "iteration" in row] == [2.0, 2.0]


def test_a_named_reward_keeps_its_weight_beside_a_held_out_one(argv, tmp_path):
    at = argv.index("--reward_funcs") + 1
    named = [*argv[:at], "regex:pattern=happy,weight=0.5", *argv[at + 1 :]]
    assert main([*named, "--held_out_reward", f"{tmp_path}/held.py:short_replies", "--max_steps", "1"]) == 0
    row = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[1])
    assert row["reward"] == pytest.approx(0.5 * row["rewards/regex/mean"])


def test_a_normalized_reward_is_paid_without_the_held_out_one(argv, tmp_path):
    held_out = ["--held_out_reward", f"{tmp_path}/held.py:short_replies", "--reward_normalize", "true"]
    assert main([*argv, *held_out, "--max_steps", "1"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    scores = [row["score"] for row in rows if "score" in row]
    assert max(scores) > 0  # around 0; with the held-out reward, which is minus the length, all are below it


def test_the_evaluation_behind_the_training_stops_nothing(argv, tmp_path, capsys):
    held_out = ["--held_out_reward", f"{tmp_path}/held.py:short_replies", "--held_out_patience", "1"]
    assert main([*argv, *held_out, "--max_steps", "1"]) == 0
    assert "stopping early" not in capsys.readouterr().out


def test_a_held_out_reward_without_numbers_is_said(argv, tmp_path, caplog):
    assert main([*argv, "--held_out_reward", f"{tmp_path}/held.py:silent", "--max_steps", "1"]) == 0
    assert any("gave no evaluation a number" in message for message in caplog.messages)
    assert not (tmp_path / "out" / "over_optimization.json").exists()


def test_what_contradicts_a_held_out_reward_is_refused(argv, tmp_path, failing):
    held_out = ["--held_out_reward", f"{tmp_path}/held.py:short_replies"]
    assert "is trained on" in failing(*argv, "--held_out_reward", f"{tmp_path}/held.py:long_replies")
    assert "without held_out_reward" in failing(*argv, "--held_out_patience", "2")
    assert "at least 2" in failing(*argv, *held_out, "--frontier_best_of_n", "1")
    assert "nothing is evaluated" in failing("ppo", *argv[1:3], *argv[5:], *held_out)
