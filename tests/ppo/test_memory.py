import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tiny import make_trainer
from transformers import TrainerCallback


class LiveNumbers(TrainerCallback):
    """Count of the numbers that all tensors hold together, at the end of each iteration."""

    def __init__(self):
        self.counts = []

    def on_log(self, args, state, control, **kwargs):
        gc.collect()
        # Not isinstance, which asks lazy objects for a class and so wakes them up.
        tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
        self.counts.append(sum(tensor.numel() for tensor in tensors))


def test_an_iteration_leaves_no_tensor_behind(tmp_path):
    live = LiveNumbers()
    make_trainer(
        tmp_path,
        data=Dataset.from_dict({"prompt": ["the cat sat on"] * 16}),
        stop_token_ids=list(range(29)),  # every completion has one token: all iterations are of one size
        max_steps=4 * 10,
        trainer_kwargs={"callbacks": [live]},
    ).train()
    assert live.counts[1] > 0
    assert set(live.counts[1:10]) == {live.counts[1]}


MEMORY_SCRIPT = Path(__file__).parents[1] / "growth" / "long_run.py"
ITERATIONS = 30


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """Return the numbers that 30 iterations of equal size report, one at the end of each, in a process of their own."""
    done = subprocess.run(
        [sys.executable, str(MEMORY_SCRIPT), str(tmp_path_factory.mktemp("run")), str(ITERATIONS)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    assert len(rows) == ITERATIONS
    return rows


def test_resident_memory_stays_what_it_was_in_the_first_iterations(long_run):
    """The logits of one batch take 8 MB.

    What malloc keeps goes up and down by more, so the least of ten is compared.
    """
    resident = [row["resident_bytes"] for row in long_run]
    assert min(resident[-10:]) - min(resident[:10]) < 8e6


def test_tensors_and_objects_do_not_become_more(long_run):
    assert len({row["tensors"] for row in long_run[5:]}) == 1
    assert long_run[-1]["objects"] - long_run[5]["objects"] < ITERATIONS  # not one more an iteration, logs included
