"""Several ranks give the weights, metrics and files of one, and only the first of them writes."""

import json
from pathlib import Path

import pytest
from invariance.runs import assert_same
from ranks import DDP, run_ranks

SCRIPT = Path(__file__).with_name("ppo_script.py")

TWO_RANKS = {
    "half batches": {"name": "plain", "per_device_train_batch_size": 4},
    "truncated": {"name": "truncated", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    "estimators": {"name": "estimators", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "scores": {"name": "scores", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "losses": {"name": "losses", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "stops": {"name": "stops", "per_device_train_batch_size": 4, "generation_batch_size": 3},
    "full fine-tuning": {"name": "full fine-tuning", "per_device_train_batch_size": 4},
    "upper blocks": {"name": "upper blocks", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "trunk": {"name": "trunk", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "trunk of a reward": {"name": "trunk of a reward", "per_device_train_batch_size": 4},
    "sparse": {"name": "sparse", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
}
FOUR_RANKS = {"scores": {"name": "scores", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}}


def on_ranks(folder, ranks, cuts, settings=DDP, script=SCRIPT):
    """Train all of `cuts` in one start of torchrun, as starting costs most; `settings` are the launcher's."""
    run_ranks([script, folder, ranks, json.dumps(cuts)], ranks, settings, folder=folder)
    return folder


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return on_ranks(tmp_path_factory.mktemp("two"), 2, TWO_RANKS)


@pytest.mark.parametrize("place", TWO_RANKS)
def test_two_ranks_change_nothing(whole, two_ranks, place):
    assert_same(whole(TWO_RANKS[place]["name"]), two_ranks / place / "0")


@pytest.mark.parametrize("place", TWO_RANKS)
def test_only_the_first_rank_writes(two_ranks, place):
    second = two_ranks / place / "1"
    assert not [file for file in second.rglob("*") if file.is_file()]


def test_four_ranks_change_nothing(whole, tmp_path):
    on_ranks(tmp_path, 4, FOUR_RANKS)
    assert_same(whole("scores"), tmp_path / "scores" / "0")
