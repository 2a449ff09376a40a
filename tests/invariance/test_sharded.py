"""Sharded weights and optimizers give the weights, metrics, samples and files of one process."""

import json

import pytest
import sharding_on_cpu
from invariance.runs import assert_same
from invariance.test_ranks import FOUR_RANKS, TWO_RANKS, on_ranks

SHARDED = {place: cut for place, cut in TWO_RANKS.items() if place != "estimators"}
"""Runs of two ranks, without the one that refuses shards."""

ZERO_2_RUNS = {
    place: cut | {"name": {"losses": "losses, ungated", "stops": "stops, ungated"}.get(place, cut["name"])}
    for place, cut in SHARDED.items()
}
"""Runs of two ranks, without the flags that need the optimizer, which DeepSpeed owns."""


FSDP2_RUNS = SHARDED | {
    f"{place}, in step": cut | {"gather_for_rollout": False} for place, cut in SHARDED.items() if "trunk" not in place
}
"""Runs of two ranks, with the weights gathered once for a rollout, and block by block: FSDP2 keeps no states of a trunk."""


@pytest.fixture(scope="module")
def fsdp2(tmp_path_factory):
    return on_ranks(tmp_path_factory.mktemp("fsdp2"), 2, FSDP2_RUNS, sharding_on_cpu.FSDP2)


@pytest.mark.parametrize("place", FSDP2_RUNS)
def test_two_ranks_under_fsdp2_change_nothing(whole, fsdp2, place):
    assert_same(whole(FSDP2_RUNS[place]["name"]), fsdp2 / place / "0")
    assert json.loads((fsdp2 / place / "facts.json").read_text())["parameters"] == ["DTensor"]
    assert not [file for file in (fsdp2 / place / "1").rglob("*") if file.is_file()]


def test_four_ranks_under_fsdp2_that_keep_the_weights_after_a_pass_change_nothing(whole, tmp_path):
    on_ranks(tmp_path, 4, FOUR_RANKS, sharding_on_cpu.FSDP2 | {"FSDP_RESHARD_AFTER_FORWARD": "false"})
    assert_same(whole("scores"), tmp_path / "scores" / "0")


@pytest.fixture(scope="module")
def zero_2(tmp_path_factory):
    if not sharding_on_cpu.HAS_DEEPSPEED:
        pytest.skip("needs deepspeed (make test-deepspeed)")
    return on_ranks(tmp_path_factory.mktemp("zero_2"), 2, ZERO_2_RUNS, sharding_on_cpu.ZERO_2)


@pytest.mark.deepspeed
@pytest.mark.parametrize("place", ZERO_2_RUNS)
def test_two_ranks_under_zero_2_change_nothing(whole, zero_2, place):
    assert_same(whole(ZERO_2_RUNS[place]["name"]), zero_2 / place / "0")
    assert json.loads((zero_2 / place / "facts.json").read_text())["launch"] == "DEEPSPEED"
