"""Time to the same reward: the rule by which it is read off curves, and the whole with a model of random weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "benchmarks" / "time_to_reward.py"
PEER = REPOSITORY / ".venv-trl" / "bin" / "python"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import time_to_reward

    return time_to_reward


def curve(*points):
    """Points of (seconds, reward, KL), with a standard error that is a tenth of the seconds."""
    return [
        {"seconds": seconds, "reward": reward, "kl": kl, "reward_error": seconds / 10} for seconds, reward, kl in points
    ]


def test_the_level_is_reached_on_the_line_between_two_snapshots(script):
    points = curve((0, 0.0, 0.0), (10, 0.5, 1.0), (20, 1.5, 3.0))
    assert script.reached(points, 1.0, kl_bound=12) == (15.0, 2.0, 1.5)
    assert script.reached(points, 1.6, kl_bound=12) is None


def test_a_level_that_is_reached_beyond_the_kl_bound_does_not_count(script):
    points = curve((0, 0.0, 0.0), (10, 1.0, 20.0), (20, 1.2, 9.0))
    assert script.reached(points, 1.0, kl_bound=12) == (20.0, 9.0, 2.0)
    assert script.reached(points[:2], 1.0, kl_bound=12) is None
    assert script.end_of(points, "reward", 12) == 1.2
    assert script.end_of(points[:2], "reward", 12) == 0.0  # the start alone is within the bound


def test_a_seed_that_never_reaches_the_level_is_later_than_all_others(script):
    early, late = script.Reached(10.0, 5.0, 0.1), script.Reached(30.0, 3.0, 0.3)
    assert script.median_of([late, None, early]) == late
    assert script.median_of([None, early, None]) is None
    assert script.median_of([early, None]) is None


def test_the_kl_is_that_of_the_seed_with_the_median_of_the_seconds(script):
    runs = [script.Reached(10.0, 9.0, 0.1), script.Reached(20.0, 2.0, 0.2), script.Reached(30.0, 4.0, 0.4)]
    assert script.median_of(runs) == runs[1]
    assert script.median_of(runs[1:]) == pytest.approx((25.0, 3.0, 0.3))  # two are in the middle


def test_the_best_setting_has_the_highest_reward_within_the_kl_bound(script):
    tried = [
        {"failed": None, "reward": 2.0, "kl": 30.0},
        {"failed": None, "reward": 1.0, "kl": 9.0},
        {"failed": "out of memory", "reward": None, "kl": None},
    ]
    assert script.best(tried, 12) is tried[1]
    assert script.best(tried[:1], 12) is tried[0]
    with pytest.raises(SystemExit, match="out of memory"):
        script.best(tried[2:], 12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_sides_get_as_many_tries_and_none_twice(script, dtype):
    for side, rate in script.VALUE_RATE.items():
        setting = script.changed(script.POLICY_SETTINGS[1], dtype, value_rate=rate)
        variants = script.variants_of(side, setting, dtype)
        assert len({setting, *variants}) == 1 + script.VARIANTS_TRIED
        assert dtype not in {variant.value_dtype for variant in variants}


def test_without_a_search_the_settings_of_an_earlier_one_are_kept(script, tmp_path):
    values = dict.fromkeys(script.Experiment.__dataclass_fields__) | {"folder": tmp_path, "dtype": "float32"}
    experiment = script.Experiment(**(values | {"sides": ["own", "trl"]}))
    earlier = {"setting": script.asdict(script.POLICY_SETTINGS[3]), "tried": []}
    experiment.write("settings.json", {"own": earlier})
    found = script.search(experiment)
    assert found["own"] == earlier
    assert found["trl"]["setting"]["value_learning_rate"] == pytest.approx(5e-5)
    assert script.read(tmp_path / "settings.json") == found


def test_the_search_and_the_result_are_judged_on_different_messages_of_the_same_topics(script):
    topics = {"train": {}, "test": {}}
    for line in (REPOSITORY / "hf_rlhf" / "quickstart" / "prompts.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        topics[row["split"]][row["prompt"]] = row["topic"]
    halves = [script.messages_of(list(topics["test"]), half) for half in (script.SEARCH, script.RESULT)]
    assert not set(halves[0]) & set(halves[1])
    for half in halves:
        assert sorted(topics["test"][text] for text in half) == sorted(set(topics["test"].values()))


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"model": "other"}, {"held_out_samples": 3}, {"share": 0.5}])
def test_what_was_judged_with_other_settings_is_judged_again(script, change):
    values = dict.fromkeys(script.Experiment.__dataclass_fields__) | {
        "dtype": "float32",
        "model": "model",
        "share": 1.0,
    }
    before, after = (script.Experiment(**(values | changes)).judging(script.RESULT) for changes in ({}, change))
    assert before != after
    assert before != script.Experiment(**values).judging(script.SEARCH)


def test_a_run_says_how_far_it_is_and_is_killed_at_its_limit(script, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(script, "SECONDS_OF_LINE", 0.1)
    log = tmp_path / "log.txt"
    log.write_text("iteration 1, 5 of 20 s\nupdate 3\n")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        assert script.wait(process, "run", log, limit=0.4) is None
    assert process.returncode
    assert capsys.readouterr().out.splitlines()[0] == "run, 0 s: iteration 1, 5 of 20 s"
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]) as process:
        assert script.wait(process, "run", log, limit=60) == 3


def test_the_expected_time_is_the_training_and_what_surrounds_it(script, tmp_path):
    values = dict.fromkeys(script.Experiment.__dataclass_fields__) | {"folder": tmp_path, "model": "model"}
    values |= {"sides": ["own", "trl"], "seeds": [0, 1, 2], "peer_minutes": 6.0, "rollout_batch_size": 32}
    experiment = script.Experiment(**(values | script.QUICK))
    speed = script.Speed(load=2.0, prompt=0.05, step=0.1, token=0.005, forward=0.05, update=0.2)
    seconds = script.expected_seconds(experiment, speed)
    assert seconds["search"] == 0
    assert seconds["run"] == 3 * (180 + 360) + 6 * (2 * 2.0 + script.SECONDS_TO_BEGIN)
    # 48 replies of 32 tokens: 2 s to load, 2.4 + 32 * (0.1 + 48 * 0.005) to sample, 3 * 48 * 0.05 to judge
    assert 1 + 6 < seconds["judge"] / 22.48 < 1 + 6 * 8
    assert 40 < sum(seconds.values()) / 60 < 50


def test_sides_take_turns_in_beginning(script):
    names = dict.fromkeys(script.Experiment.__dataclass_fields__)
    experiment = script.Experiment(**{**names, "sides": ["own", "trl"], "seeds": [0, 1, 2]})
    assert script.runs(experiment) == [("own", 0), ("trl", 0), ("trl", 1), ("own", 1), ("own", 2), ("trl", 2)]


def test_the_clock_of_a_run_leaves_out_saving_and_snapshots_spread_out(script, monkeypatch, tmp_path):
    import task

    clock = [0.0]
    monkeypatch.setattr(task, "now", lambda: clock[0])
    values = dict.fromkeys(task.Task.__dataclass_fields__) | {
        "output_dir": str(tmp_path),
        "seconds": 40,
        "snapshots": 3,
    }

    def save(folder):
        clock[0] += 100

    recorder = task.Recorder(task.Task(**values), save)
    with recorder.training():
        while True:
            clock[0] += 1
            if recorder.end_iteration():
                raise task.TimeIsUp
    assert [snapshot["seconds"] for snapshot in recorder.snapshots] == [1, 7, 40]  # a factor of the root of 40
    assert recorder.iterations == 40
    assert recorder.failed is None


def test_training_that_breaks_off_has_a_result(script, tmp_path):
    import task

    values = dict.fromkeys(task.Task.__dataclass_fields__) | {
        "output_dir": str(tmp_path),
        "seconds": 40,
        "snapshots": 3,
    }
    recorder = task.Recorder(
        task.Task(
            **values,
        ),
        lambda folder: None,
    )
    with recorder.training():
        raise ValueError("probabilities are no numbers")
    recorder.write(torch="2")
    assert script.read(tmp_path / "result.json")["failed"] == "ValueError: probabilities are no numbers"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_stage_runs_and_is_not_repeated(tmp_path):
    flags = ["--tiny", "--output_dir", str(tmp_path), *(["--peer_python", str(PEER)] if PEER.exists() else [])]
    path = os.pathsep.join([str(REPOSITORY), *sys.path])
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, str(SCRIPT), *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    sides = ["own", "trl"] if PEER.exists() else ["own"]
    summary = json.loads((tmp_path / "time_to_reward.json").read_text())
    assert list(summary["sides"]) == sides
    for of in summary["sides"].values():
        assert of["iterations"] >= 1
        assert of["peak_gb"] > 0.1
        assert of["curves"]["0"][0]["seconds"] == 0.0
    assert (tmp_path / "time_to_reward.png").stat().st_size > 10_000
    logs = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/**/log.txt")}
    assert len(logs) == 3 * len(sides)  # a setting, a variant and a run
    again = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert again.returncode == 0, again.stderr[-3000:]
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/**/log.txt")} == logs
    assert again.stdout.splitlines()[-5:] == done.stdout.splitlines()[-5:]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_blocks_and_fewer_are_trained_and_judged(tmp_path):
    path = os.pathsep.join([str(REPOSITORY), *sys.path])
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, str(SCRIPT.with_name("blocks_to_reward.py")), "--tiny", "--output_dir", str(tmp_path)]
    subprocess.run(command, check=True, env=environment)
    rows = json.loads((tmp_path / "blocks_to_reward.json").read_text())
    assert [row["name"].split(",")[0] for row in rows] == ["all blocks", "last 50% of blocks", "last 25% of blocks"]
    for row in rows:
        assert len(row["reward"]) == len(row["kl"]) == 1
        assert 0.1 < row["peak_gb"] < 3
        assert len(row["curves"][0]) >= 2
    assert (tmp_path / "blocks_to_reward.png").stat().st_size > 10_000
