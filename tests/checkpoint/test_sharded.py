"""Runs under FSDP2 and ZeRO-2 end as those of one process, are saved whole, and resume to the same bits."""

import json
import re
import time

import numpy as np
import pytest
import sharding_on_cpu
import torch
from checkpoint.runs import PROBE, SHARDED, other_uses, outcome, write_inputs
from invariance.test_ranks import on_ranks
from ranks import TESTS, torchrun
from safetensors.torch import load_file
from tiny import make_model, make_tokenizer, metrics_of

from hf_rlhf.checkpoint.shards import load_optimizer_shard, save_optimizer_shard
from hf_rlhf.errors import InputError
from hf_rlhf.models.adapter_files import ADAPTER_FILE

SCRIPT = TESTS / "checkpoint" / "sharded_script.py"
RANK_SCRIPT = TESTS / "checkpoint" / "rank_script.py"


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    for kind, train in SHARDED.items():
        write_inputs(folder / kind)
        train(folder / kind / "whole", "never", use_cpu=True)
    numbers = other_uses(folder / "other uses", use_cpu=True)
    (folder / "numbers.json").write_text(json.dumps(numbers))
    return folder


def assert_close(expected, found):
    """The same numbers, at any depth, but for times."""
    if isinstance(expected, dict):
        assert set(expected) == set(found)
        for name, value in expected.items():
            if "runtime" not in name:
                assert_close(value, found[name])
    else:
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)


def plain_peft_logits(folder):
    """The logits of the adapter in a folder, loaded by PEFT alone."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(make_model(make_tokenizer()), folder).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([PROBE])).logits.flatten().numpy()


def sharded(folder, settings):
    for kind in SHARDED:
        write_inputs(folder / kind)
    return on_ranks(folder, 2, list(SHARDED), settings, script=SCRIPT)


@pytest.fixture(scope="module")
def fsdp2(tmp_path_factory):
    return sharded(tmp_path_factory.mktemp("fsdp2"), sharding_on_cpu.FSDP2)


@pytest.fixture(scope="module")
def zero_2(tmp_path_factory):
    if not sharding_on_cpu.HAS_DEEPSPEED:
        pytest.skip("needs deepspeed (make test-deepspeed)")
    return sharded(tmp_path_factory.mktemp("zero_2"), sharding_on_cpu.ZERO_2)


LAUNCHES = ["fsdp2", pytest.param("zero_2", marks=pytest.mark.deepspeed)]


@pytest.mark.parametrize(
    "kind", [kind for kind in SHARDED if "bf16" not in kind]
)  # which rounds by the size of a batch
@pytest.mark.parametrize("launch", LAUNCHES)
def test_it_ends_as_one_process(one_process, request, launch, kind):
    one, other = one_process / kind / "whole", request.getfixturevalue(launch) / kind / "whole"
    for file in sorted(one.glob("*.safetensors")):
        expected, found = load_file(file), load_file(other / file.name)
        assert set(expected) == set(found)
        for name, weight in expected.items():
            bound = 1e-5 if "in step" in kind else 1e-6  # a reward model of its own pools its states in another place
            assert (found[name] - weight).norm() <= bound * weight.norm(), f"{file.name}: {name}"
    for row, twin in zip(metrics_of(one), metrics_of(other), strict=True):
        assert set(row) == set(twin)
        for name, value in row.items():
            assert value is twin[name] is None or twin[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize("kind", SHARDED)
@pytest.mark.parametrize("launch", LAUNCHES)
def test_a_resumed_run_ends_in_the_same_bits(request, launch, kind):
    folder = request.getfixturevalue(launch) / kind
    assert outcome(folder / "resumed") == outcome(folder / "whole")


@pytest.mark.parametrize("gather", [True, False])
@pytest.mark.parametrize("launch", LAUNCHES)
def test_everything_else_gives_the_numbers_of_one_process(one_process, request, launch, gather):
    """Check evaluation and values before and after training, the best checkpoint, a user's loop, whole adapters."""
    folder = request.getfixturevalue(launch) / f"other uses {gather}"
    expected = json.loads((one_process / "numbers.json").read_text())
    found = json.loads((folder / "numbers.json").read_text())
    assert_close(expected, found)
    for place in ("train", "loop"):
        state = load_file(folder / place / ADAPTER_FILE)
        assert len(state) == 28
        twin = load_file(one_process / "other uses" / place / ADAPTER_FILE)
        assert all((state[name] - weight).norm() <= 1e-6 * weight.norm() for name, weight in twin.items())
    assert plain_peft_logits(folder / "train") == pytest.approx(np.array(found["logits"]), abs=1e-5)


@pytest.mark.parametrize("launch", LAUNCHES)
def test_no_pickle_is_written(request, launch):
    folder = request.getfixturevalue(launch)
    names = {file.suffix for file in folder.rglob("*") if file.is_file()}
    assert names <= {".json", ".jsonl", ".safetensors", ".md", ".jinja", ".yaml", ".txt", ".lock", ".png"}
    shards = list(folder.rglob("optimizer-*.safetensors"))
    assert len(shards) >= 2 * len(SHARDED)
    manifest = json.loads((shards[0].parent / "manifest.json").read_text())
    assert shards[0].name in json.dumps(manifest)


def test_an_optimizer_state_of_another_launch_is_refused_by_name(tmp_path):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    with pytest.raises(InputError, match="the model alone"):
        load_optimizer_shard(tmp_path, "optimizer", optimizer, "FSDP")
    save_optimizer_shard(tmp_path, "optimizer", optimizer, "FSDP")
    load_optimizer_shard(tmp_path, "optimizer", optimizer, "FSDP")
    with pytest.raises(InputError, match="is of a run under FSDP, and this one is under DEEPSPEED"):
        load_optimizer_shard(tmp_path, "optimizer", optimizer, "DEEPSPEED")
    (tmp_path / "optimizer-0.json").unlink()
    (tmp_path / "latest").write_text("global_step8")
    with pytest.raises(InputError, match="DeepSpeed wrote it in its own format, as it does under ZeRO-3"):
        load_optimizer_shard(tmp_path, "optimizer", optimizer, "DEEPSPEED")


FAILURES = {
    "die in a rollout": r"exitcode  : -9",
    "die in a save": r"exitcode  : -9",
    "fail in a save": r"the checkpoint of update 2 could not be written: .*No space left",
    "fail in a rollout": r"ValueError: no such thing",
}


@pytest.mark.deepspeed
@pytest.mark.skipif(not sharding_on_cpu.HAS_DEEPSPEED, reason="needs deepspeed (make test-deepspeed)")
def test_a_rank_that_cannot_write_ends_the_job_under_zero_3(tmp_path):
    """The others are not left waiting in DeepSpeed's collectives."""
    write_inputs(tmp_path)
    zero_3 = {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true"}
    done = torchrun([RANK_SCRIPT, "sft", tmp_path / "run", "fail to write"], 2, sharding_on_cpu.ZERO_2 | zero_3)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert re.search("the checkpoint of update 4 could not be written: .*No space left", said), said[-3000:]


@pytest.mark.parametrize("gather", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "what", [what if what == "die in a rollout" else pytest.param(what, marks=pytest.mark.slow) for what in FAILURES]
)
def test_a_rank_that_fails_ends_the_job_within_a_minute(tmp_path, what, gather):
    """Check that torchrun ends the job and names first the second rank's message, or the signal that ended it."""
    flags = json.dumps({"gather_for_rollout": gather})
    done = torchrun([RANK_SCRIPT, "ppo under FSDP2", tmp_path / "run", what, flags], 2, sharding_on_cpu.FSDP2)
    ended = time.time()
    said = done.stdout + done.stderr
    assert done.returncode != 0
    begun = float(re.search(r"dying at ([\d.]+)", said)[1])
    assert ended - begun < 60
    assert re.search(FAILURES[what], said), said[-3000:]
    assert "rank      : 1 (local_rank: 1)" in said.partition("Root Cause")[2] or "fail" in what
