"""Signals, and ranks that end together: real processes, real signals."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoint.runs import ON_RANKS, RUNS, in_child, outcome
from safetensors.torch import load_file
from tiny import metrics_of

TESTS = Path(__file__).parents[1]
SCRIPT = TESTS / "checkpoint" / "rank_script.py"


def at_update(update, act):
    """A callback that calls `act` in the middle of the update with this number."""
    from transformers import TrainerCallback

    class AtUpdate(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step + 1 == update:
                act()

    return AtUpdate()


def run_with(kind, folder, update, act, status):
    """Train in a forked process, calling `act` in an update; the process ends with `status` and 0 for no exit."""
    from hf_rlhf.errors import RunStopped
    from hf_rlhf.training.durable import DurableTrainer

    def work():
        start = DurableTrainer.train

        def train(self, *args, **kwargs):
            self.add_callback(at_update(update, act))
            return start(self, *args, **kwargs)

        DurableTrainer.train = train
        try:
            RUNS[kind](folder)
        except RunStopped as stop:
            os.write(2, str(stop).encode())
            os._exit(stop.code)

    ended = in_child(work, stderr=Path(f"{folder}.txt"))
    assert os.waitstatus_to_exitcode(ended) == status, Path(f"{folder}.txt").read_text(encoding="utf-8")
    return Path(f"{folder}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", [kind for kind in RUNS if kind not in ON_RANKS])
def test_a_signal_saves_stops_and_the_run_goes_on_to_the_same_bits(tmp_path, kind, number):
    update = 3
    text = run_with(kind, tmp_path / "run", update, lambda: signal.raise_signal(number), 128 + number)
    assert f"{number.name}: the run stops as soon as it can save a checkpoint" in text
    stopped_at = 4  # PPO's next end of an iteration, and the update after the one whose ranks had agreed
    assert f"checkpoint-{stopped_at}. --resume auto" in text
    assert max(int(path.name[11:]) for path in (tmp_path / "run").glob("checkpoint-*")) == stopped_at
    assert max(row["step"] for row in metrics_of(tmp_path / "run")) <= stopped_at
    for folder in ("run", "whole"):
        errors = tmp_path / f"{folder}-end.txt"
        assert in_child(lambda folder=folder: RUNS[kind](tmp_path / folder), stderr=errors) == 0, errors.read_text(
            encoding="utf-8"
        )
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_second_signal_ends_the_process_at_once(tmp_path):
    def twice():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    text = run_with("ppo", tmp_path / "run", 3, twice, 143)
    assert "SIGTERM again: the run ends now" in text
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_run_without_checkpoints_leaves_signals_as_they_are(tmp_path):
    def work():
        from tiny import make_trainer

        trainer = make_trainer(tmp_path, save_strategy="no")
        trainer.add_callback(at_update(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        trainer.train()

    assert os.WTERMSIG(in_child(work)) == signal.SIGTERM


# Two ranks


def start_ranks(folder, what, kind="ppo"):
    """Two processes as a launcher would start them; each says when an update is under way."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    folder.mkdir(exist_ok=True)
    ranks = []
    for rank in range(2):
        with (folder / f"rank{rank}-{what}.txt").open("w") as output:
            ranks.append(
                subprocess.Popen(
                    [sys.executable, str(SCRIPT), kind, str(folder / "run"), what],
                    env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=output,
                    stderr=output,
                )
            )
    return ranks


def ended(ranks, folder, what):
    """Exit codes and outputs of both, and the seconds from the first end to the last."""
    deadline, first = time.monotonic() + 200, None
    try:
        while any(rank.poll() is None for rank in ranks):
            assert time.monotonic() < deadline, texts(folder, what)
            if first is None and any(rank.poll() is not None for rank in ranks):
                first = time.monotonic()
            time.sleep(0.05)
    finally:
        for rank in ranks:
            rank.kill()
    return [rank.returncode for rank in ranks], texts(folder, what), time.monotonic() - (first or time.monotonic())


def texts(folder, what):
    return [(folder / f"rank{rank}-{what}.txt").read_text(encoding="utf-8") for rank in range(2)]


def test_a_signal_to_one_of_two_ranks_saves_the_same_update_on_both(tmp_path):
    ranks = start_ranks(tmp_path, "term")
    codes, outputs, _ = ended(ranks, tmp_path, "term")
    assert codes == [143, 143], outputs
    assert all("stopped by a signal after update 4" in output for output in outputs), outputs
    assert "SIGTERM: the run stops" not in outputs[0]
    assert "SIGTERM: the run stops" in outputs[1]
    manifest = json.loads((tmp_path / "run" / "checkpoint-4" / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["step"], manifest["world_size"]) == (4, 2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_that_were_stopped_go_on_to_the_same_bits(tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    ended(start_ranks(tmp_path, "term"), tmp_path, "term")
    codes, outputs, _ = ended(start_ranks(tmp_path, "plain"), tmp_path, "plain")
    assert codes == [0, 0], outputs
    codes, outputs, _ = ended(start_ranks(whole, "plain"), whole, "plain")
    assert codes == [0, 0], outputs
    assert outcome(tmp_path / "run") == outcome(whole / "run")


def test_nan_on_one_of_two_ranks_is_made_on_none(tmp_path):
    codes, outputs, _ = ended(start_ranks(tmp_path, "nan"), tmp_path, "nan")
    assert codes == [0, 0], outputs
    rows = [row for row in metrics_of(tmp_path / "run") if "iteration" in row]
    assert [row["nonfinite_updates"] for row in rows] == [0, 1, 1, 1]
    assert [row["loss"] is None for row in rows] == [False, True, False, False]
    for file in (tmp_path / "run").glob("*.safetensors"):
        assert all(weight.isfinite().all() for weight in load_file(file).values())
    prints = [output.split("weights: ")[1].split()[0] for output in outputs]
    assert prints[0] == prints[1], "both ranks hold the same weights"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "codes", "said"),
    [
        ("nans", [1, 1], "the run failed: the loss or the gradients of update 5 .*on ranks [1].*3 in a row"),
        ("raise", [2, 2], "error: reward 'broken' returned nan"),
        ("other", [1, 1], "ValueError: no such thing"),
        ("diverge", [1, 1], "the ranks hold different weights after update 4"),
    ],
)
def test_a_rank_that_fails_ends_the_others_with_the_same_cause(tmp_path, what, codes, said):
    import re

    found, outputs, seconds = ended(start_ranks(tmp_path, what), tmp_path, what)
    assert found == codes, outputs
    assert seconds < 20
    pattern = re.escape(said).replace(r"\.\*", ".*")
    assert all(re.search(pattern, output, re.DOTALL) for output in outputs), outputs


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_other(tmp_path):
    codes, outputs, seconds = ended(start_ranks(tmp_path, "kill"), tmp_path, "kill")
    assert codes[1] == -signal.SIGKILL, outputs
    assert codes[0] not in (0, None), outputs
    assert seconds < 60
    assert not list((tmp_path / "run").glob(".tmp-*"))
