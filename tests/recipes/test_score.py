import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_rlhf.cli.commands import main
from hf_rlhf.errors import InputError
from hf_rlhf.recipes.score import ScoreArguments, score_dataset
from hf_rlhf.rewards.cache import RewardCache

FUNCTION = """
import os, time


def length(prompts, completions, topic=None):
    time.sleep(float(os.environ.get("SLOW", 0)))
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(f"{len(completions)}\\n")
    return [float(len(completion)) for completion in completions]


length.cache_key = "1"
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(FUNCTION, encoding="utf-8")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name, rows):
    with open(name, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return name


def read(name):
    with open(name, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def score(dataset, **flags):
    flags = {"reward_funcs": ["mine.py:length"], "use_cpu": True, "batch_size": 5, **flags}
    return score_dataset(ScoreArguments(dataset_name=dataset, **flags))


def test_rows_are_written_with_their_scores_and_the_rewards_that_they_are_made_of(place):
    rows = [{"prompt": "a", "completion": "bb", "topic": 1}, {"prompt": "a", "completion": "?", "topic": 2}]
    numbers = score(
        write("rows.jsonl", rows),
        reward_funcs=["mine.py:length", "regex:pattern=[?]"],
        reward_weights=[1.0, -3.0],
        reward_clips=[1.5, float("inf")],
        output="out/scored.jsonl",
    )
    assert read("out/scored.jsonl") == [
        {**rows[0], "score": 1.5, "rewards": {"length": 2.0, "regex": 0.0}},
        {**rows[1], "score": -2.0, "rewards": {"length": 1.0, "regex": 1.0}},
    ]
    assert (numbers["completions"], numbers["score/completion/mean"], numbers["rows_written"]) == (2, -0.25, 2)
    assert os.listdir("out") == ["scored.jsonl"]


def test_pairs_and_lists_of_completions_have_a_score_each(place):
    pairs = write(
        "pairs.jsonl",
        [{"prompt": "a", "chosen": "bbb", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": "cc"}],
    )
    assert score(pairs, output="scored.jsonl")["chosen_above_rejected"] == 0.5
    assert [(row["score_chosen"], row["score_rejected"]) for row in read("scored.jsonl")] == [(3.0, 1.0), (1.0, 2.0)]
    several = write("several.jsonl", [{"prompt": "a", "completions": ["b", "bb"]}])
    score(several, output="lists.jsonl")
    assert read("lists.jsonl")[0]["scores"] == [1.0, 2.0]


def test_rows_outside_the_limits_and_unscored_ones_are_not_written(place):
    rows = [{"prompt": "a", "completion": "b" * size, "answer": "bb" if size != 4 else None} for size in range(1, 6)]
    file = write("rows.jsonl", rows)
    score(file, output="some.jsonl", min_score=2.0, max_score=4.0)
    assert [row["score"] for row in read("some.jsonl")] == [2.0, 3.0, 4.0]
    score(file, reward_funcs=["exact_match"], output="matches.jsonl", min_score=0.0)
    assert [row["score"] for row in read("matches.jsonl")] == [0.0, 1.0, 0.0, 0.0]


def test_an_output_without_rows_is_warned_of(place, caplog):
    rows = write("rows.jsonl", [{"prompt": "a", "completion": "bb"}])
    score(rows, output="some.jsonl", min_score=2.0)
    assert not caplog.records
    score(rows, output="none.jsonl", min_score=2.5)
    assert "none.jsonl has 0 of 1 rows: none has all of its scores within min_score and max_score" in caplog.text


def test_a_command_that_is_killed_goes_on_where_it_was(place, monkeypatch):
    file = write("rows.jsonl", [{"prompt": "a", "completion": "b" * size} for size in range(1, 41)])
    monkeypatch.setenv("SLOW", "0.2")
    command = [
        sys.executable,
        "-m",
        "hf_rlhf.cli",
        "score",
        file,
        "--reward_funcs",
        "mine.py:length",
        "--batch_size",
        "5",
    ]
    process = subprocess.Popen(
        [*command, "--reward_cache", "cache", "--output", "o.jsonl", "--use_cpu", "true"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    calls = place / "calls"
    while not calls.exists() or len(calls.read_text().splitlines()) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (place / "o.jsonl").exists()
    kept = len(RewardCache("cache"))
    assert kept >= 10
    monkeypatch.setenv("SLOW", "0")
    calls.unlink()
    numbers = score(file, reward_cache="cache", output="o.jsonl")
    assert sum(map(int, calls.read_text().split())) == 40 - kept
    assert numbers["cached/length"] == kept / 40
    assert [row["score"] for row in read("o.jsonl")] == [float(size) for size in range(1, 41)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "nothing would be kept"),
        ({"output": "scored.csv"}, "ends in .jsonl"),
        ({"output": "rows.jsonl"}, "the file exists"),
        ({"reward_cache": "cache", "min_score": 1.0}, "Give an output"),
        ({"reward_cache": "cache", "reward_funcs": []}, "no reward"),
        ({"reward_cache": "cache", "reward_funcs": ["exact_match"]}, "takes answer"),
        ({"reward_cache": "cache", "reward_funcs": ["regex:pattern=a,normalize=true"]}, "normalize=true"),
        ({"reward_cache": "cache", "reward_funcs": ["trl.rewards:think"]}, "reward_funcs=.* there is no 'think'"),
        (
            {"reward_cache": "cache", "reward_model_path": "trl.rewards:think"},
            "reward_model_path=.* there is no 'think'",
        ),
        ({"reward_cache": "cache", "reward_model_path": "embedded:smollm2-135m-instruct"}, "reward model 'embedded:"),
    ],
)
def test_wrong_flags_are_one_error_before_anything_is_scored(place, flags, message):
    file = write("rows.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(InputError, match=message):
        score(file, **flags)
    assert not (place / "calls").exists()


def test_it_is_a_command_that_takes_the_set_first(place, capsys):
    file = write("rows.jsonl", [{"prompt": "a", "completion": "b"}])
    (place / "score.yaml").write_text(
        "reward_funcs:\n  - {name: regex, pattern: '^b', weight: 0.5}\n", encoding="utf-8"
    )
    assert main(["score", file, "--config", "score.yaml", "--output", "o.jsonl", "--use_cpu", "true"]) == 0
    assert read("o.jsonl")[0]["score"] == 0.5
    assert "saved to o.jsonl" in capsys.readouterr().out
    assert main(["score", file, "--reward_funcs", "regx:pattern=a", "--output", "p.jsonl"]) == 2
    assert "Did you mean 'regex'" in capsys.readouterr().err
