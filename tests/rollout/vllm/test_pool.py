"""Several servers as one. Doubles of the server run as processes of their own, so that they can be killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import sharding_on_cpu
import torch
from rollout.vllm.double import VLLMDouble, VLLMProcess
from tiny import make_config, make_lora, make_model, make_tokenizer, make_trainer, metrics_of, perturb, trained
from tiny_data import PPO_FLAGS, prompt_rows

from hf_rlhf.errors import InputError
from hf_rlhf.models.policy import PolicyWithValue, wrap_policy
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import Sampling, row_seed
from hf_rlhf.rollout.vllm import client as vllm_client
from hf_rlhf.rollout.vllm import engine as vllm_engine
from hf_rlhf.rollout.vllm import pool as vllm_pool
from hf_rlhf.rollout.vllm.engine import VLLMEngine
from hf_rlhf.rollout.vllm.pool import NoServerLeft, ServerPool

REPOSITORY = Path(__file__).parents[3]
PROMPTS = [[5, 9, 12], [8], [7, 7, 7, 11, 13, 20], [14, 2], [10, 9, 8, 7], [21, 22], [6], [9, 9]]
SEEDS = [row_seed(0, row) for row in range(len(PROMPTS))]
SAMPLING = Sampling(max_completion_length=6)
SLOW = 0.25  # seconds of a completion


@pytest.fixture
def policy(tokenizer):
    return perturb(PolicyWithValue(wrap_policy(make_model(tokenizer), make_lora())), only="lora").eval()


@pytest.fixture
def slow_and_fast():
    servers = [VLLMProcess(delay=SLOW), VLLMProcess()]
    yield [server.ready() for server in servers]
    for server in servers:
        server.kill()


@pytest.fixture
def doubles(tokenizer):
    """Two servers in this process, for what needs no death."""
    servers = [VLLMDouble(make_model(tokenizer), tokenizer).start() for _ in range(2)]
    yield servers
    for server in servers:
        server.stop()


def engine_of(policy, servers, folder, **settings):
    urls = [server.url for server in servers]
    return VLLMEngine(policy.model, make_tokenizer(), urls, folder / "vllm", **{"timeout": 1.5} | settings)


def sampled(engine):
    return [completion.ids for completion in engine.generate(PROMPTS, SAMPLING, SEEDS)]


def drawn_without_servers(policy):
    engine = TransformersEngine(policy.model, make_tokenizer())
    return [completion.ids for completion in engine.generate(PROMPTS, SAMPLING, SEEDS)]


def completions_of(server):
    return len(server.sent("/v1/completions"))


def when(condition, act):
    """Call `act` once the condition holds, beside the test."""

    def wait():
        while not condition():
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def warnings_with(caplog, *parts):
    return [record.getMessage() for record in caplog.records if all(part in record.getMessage() for part in parts)]


# Balance


def test_a_completion_goes_to_the_server_with_the_fewest_tokens_outstanding():
    pool = ServerPool(["http://a:1", "http://b:1"], limit=9)
    for server in pool.servers:
        pool.use(server)
    taken = [pool.take(tokens)[0].url[7] for tokens in (50, 20, 20, 20, 20)]
    assert taken == ["a", "b", "b", "b", "a"]
    pool.give_back(pool.servers[0], 70)
    assert pool.take(1)[0] is pool.servers[0]


def test_a_server_gets_no_more_than_the_limit():
    pool = ServerPool(["http://a:1", "http://b:1"], limit=1)
    for server in pool.servers:
        pool.use(server)
    first, _ = pool.take(1)
    second, _ = pool.take(100)
    assert first is not second
    threading.Timer(0.2, pool.give_back, (second, 100)).start()
    assert pool.take(1)[0] is second


def test_a_pool_without_a_server_says_so_also_to_those_who_wait():
    pool = ServerPool(["http://a:1"], limit=1)
    pool.use(pool.servers[0])
    server, turn = pool.take(1)
    threading.Timer(0.2, pool.stop_using, (server, turn, "of the test")).start()
    with pytest.raises(NoServerLeft):
        pool.take(1)


def test_what_failed_before_a_server_came_back_does_not_count_against_it():
    pool = ServerPool(["http://a:1"], limit=2)
    server = pool.servers[0]
    pool.use(server)
    _, turn = pool.take(1)
    assert pool.stop_using(server, turn, "first") == 1
    pool.use(server)
    assert pool.stop_using(server, turn, "late") is None
    assert server.in_use


def test_a_fast_server_gets_more_than_a_slow_one(policy, slow_and_fast, tmp_path):
    slow, fast = slow_and_fast
    engine = engine_of(policy, slow_and_fast, tmp_path, concurrency=1)
    assert sampled(engine) == drawn_without_servers(policy)
    assert 2 <= completions_of(slow) < completions_of(fast)  # the first of each compares the models


# Death


def test_a_killed_servers_completions_go_to_the_other_and_it_is_used_again(policy, slow_and_fast, tmp_path, caplog):
    slow, fast = slow_and_fast
    engine = engine_of(policy, slow_and_fast, tmp_path)
    killing = when(lambda: completions_of(slow) >= 3, slow.kill)  # one compares the models
    assert sampled(engine) == drawn_without_servers(policy)
    killing.join()
    assert engine.count_answering() == 1
    assert completions_of(fast) == 1 + len(PROMPTS)
    (said,) = warnings_with(caplog, "Lost")
    for part in (slow.url, f"completions (4) go to the vLLM server at {fast.url}"):
        assert part in said

    perturb(policy, only="lora", seed=8)
    assert sampled(engine) == drawn_without_servers(policy)  # an iteration while it is still gone
    assert len(warnings_with(caplog, slow.url)) == 1

    slow.start().ready()
    perturb(policy, only="lora", seed=9)
    assert sampled(engine) == drawn_without_servers(policy)
    assert [body["lora_name"] for body in slow.sent("/v1/load_lora_adapter")] == [engine._adapter]
    assert {body["model"] for body in slow.sent("/v1/completions")} == {engine._adapter}
    assert engine.count_answering() == 2
    assert len(warnings_with(caplog, "Back", slow.url)) == 1


def test_a_server_that_stops_answering_is_left_out(policy, slow_and_fast, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(vllm_client, "_HEALTH_SECONDS", 0.5)
    monkeypatch.setattr(vllm_client, "_PATIENCE_SECONDS", 1.0)
    slow, _ = slow_and_fast
    engine = engine_of(policy, slow_and_fast, tmp_path)
    when(lambda: completions_of(slow) >= 3, lambda: os.kill(slow.process.pid, signal.SIGSTOP))
    assert sampled(engine) == drawn_without_servers(policy)
    assert len(warnings_with(caplog, "Lost", slow.url)) == 1
    monkeypatch.setattr(vllm_client, "_PATIENCE_SECONDS", 30.0)
    monkeypatch.setattr(vllm_engine, "_LOOK_SECONDS", 0.3)
    perturb(policy, only="lora", seed=8)
    start = time.monotonic()
    assert sampled(engine) == drawn_without_servers(policy)
    assert time.monotonic() - start < 10  # it is not waited for once more


def test_what_a_server_samples_for_a_failed_batch_is_not_waited_for(policy, doubles, tmp_path):
    engine = engine_of(policy, doubles, tmp_path)
    sampled(engine)
    doubles[0].delay = 6.0
    doubles[1].planned.append((400, {"error": {"message": "too long"}}))
    start = time.monotonic()
    with pytest.raises(InputError, match=f"{doubles[1].url} cannot sample: refused .status 400.: too long"):
        sampled(engine)
    assert time.monotonic() - start < 5


def test_the_first_server_to_come_back_is_waited_for_when_all_are_dead(policy, slow_and_fast, tmp_path, caplog):
    slow, fast = slow_and_fast
    engine = engine_of(policy, slow_and_fast, tmp_path, timeout=20)

    def kill_both_and_start_one():
        fast.kill()
        slow.kill()
        fast.start().ready()

    when(lambda: completions_of(slow) >= 3, kill_both_and_start_one)
    assert sampled(engine) == drawn_without_servers(policy)
    assert len(warnings_with(caplog, "Waiting until one answers", slow.url, fast.url)) == 1
    assert len(warnings_with(caplog, "has the adapter again", fast.url)) == 1


def test_dead_servers_are_all_named(policy, slow_and_fast, tmp_path):
    engine = engine_of(policy, slow_and_fast, tmp_path)
    sampled(engine)
    for server in slow_and_fast:
        server.kill()
    with pytest.raises(InputError, match="no vLLM server answered") as caught:
        sampled(engine)
    assert all(server.url in str(caught.value) for server in slow_and_fast)


# At the start


def test_servers_are_waited_for_together_with_a_line_about_those_that_lack(policy, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(vllm_pool, "_NOTICE_SECONDS", 0.3)
    urls = ["http://127.0.0.1:7", "http://127.0.0.1:9"]
    engine = VLLMEngine(policy.model, make_tokenizer(), urls, tmp_path, timeout=1.5)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"http://127.0.0.1:7 and http://127.0.0.1:9 within vllm_server_timeout=1.5"):
        sampled(engine)
    assert time.monotonic() - start < 2.9  # one after the other they would take three seconds
    assert len(warnings_with(caplog, "Waiting for the vLLM servers", *urls)) >= 2


def test_a_missing_server_is_named_without_those_that_are_there(policy, doubles, tmp_path):
    there, missing = doubles
    missing.stop()
    with pytest.raises(InputError, match="no vLLM server answered") as caught:
        sampled(engine_of(policy, doubles, tmp_path))
    assert missing.url in str(caught.value)
    assert "remove it from vllm_server_base_urls" in str(caught.value)
    assert there.url not in str(caught.value)


def test_a_server_with_another_model_is_refused(policy, doubles, tmp_path, tokenizer):
    doubles[1].base = make_model(tokenizer, seed=5)
    with pytest.raises(InputError, match=f"{doubles[1].url} cannot sample: it serves another model"):
        sampled(engine_of(policy, doubles, tmp_path))


def test_a_server_that_names_another_base_is_refused(policy, doubles, tmp_path):
    doubles[1].root = "tiny-instruct"
    with pytest.raises(InputError, match=f"{doubles[1].url} cannot sample: it serves tiny-instruct.*--model tiny"):
        sampled(engine_of(policy, doubles, tmp_path))


@pytest.mark.parametrize("failing", ["missing", "another base", "another model"])
def test_a_start_that_failed_is_a_start_when_it_is_tried_again(policy, doubles, tmp_path, tokenizer, failing):
    _, other = doubles
    if failing == "missing":
        other.stop()
    elif failing == "another base":
        other.root = "tiny-instruct"
    else:
        other.base = make_model(tokenizer, seed=5)
    engine = engine_of(policy, doubles, tmp_path)
    messages = []
    for _ in range(2):
        with pytest.raises(InputError, match=other.url) as caught:
            sampled(engine)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    other.stop()
    other.root, other.base = "tiny", make_model(tokenizer)
    other.start()
    assert sampled(engine) == drawn_without_servers(policy)
    assert engine.count_answering() == 2


def test_a_server_is_compared_again_after_a_start_that_failed(policy, doubles, tmp_path, tokenizer):
    there, other = doubles
    other.root = "tiny-instruct"
    engine = engine_of(policy, doubles, tmp_path)
    with pytest.raises(InputError, match="tiny-instruct"):
        sampled(engine)
    other.root = "tiny"
    there.stop()
    there.base = make_model(tokenizer, seed=5)
    there.start()
    with pytest.raises(InputError, match=f"{there.url} cannot sample: it serves another model"):
        sampled(engine)


# Adapters


def test_a_server_that_cannot_load_the_adapter_is_left_out_of_that_iteration(policy, doubles, tmp_path, caplog):
    engine = engine_of(policy, doubles, tmp_path)
    sampled(engine)
    doubles[1].runtime_lora = False
    perturb(policy, only="lora", seed=8)
    before = completions_of(doubles[1])
    assert sampled(engine) == drawn_without_servers(policy)
    assert completions_of(doubles[1]) == before
    assert len(warnings_with(caplog, "Lost", doubles[1].url, "VLLM_ALLOW_RUNTIME_LORA_UPDATING")) == 1
    doubles[1].runtime_lora = True
    perturb(policy, only="lora", seed=9)
    assert sampled(engine) == drawn_without_servers(policy)
    assert list(doubles[0].adapters) == list(doubles[1].adapters) == [engine._adapter]
    assert completions_of(doubles[1]) > before
    engine.close()
    assert doubles[0].adapters == doubles[1].adapters == {}


def test_a_server_that_dies_at_its_first_adapter_is_named_and_tried_again(policy, doubles, tmp_path, caplog):
    doubles[1].after_load = doubles[1].stop
    engine = engine_of(policy, doubles, tmp_path)
    assert sampled(engine) == drawn_without_servers(policy)
    assert len(warnings_with(caplog, "Lost", doubles[1].url)) == 1
    doubles[1].after_load = lambda: None
    doubles[1].start()
    before = completions_of(doubles[1])
    assert sampled(engine) == drawn_without_servers(policy)
    assert completions_of(doubles[1]) > before + 1
    assert len(warnings_with(caplog, "Back", doubles[1].url)) == 1


def test_a_server_that_comes_back_with_another_model_stays_out(policy, doubles, tmp_path, tokenizer, caplog):
    engine = engine_of(policy, doubles, tmp_path)
    sampled(engine)
    doubles[1].stop()
    doubles[1].base = make_model(tokenizer, seed=5)
    perturb(policy, only="lora", seed=8)
    sampled(engine)
    doubles[1].start()
    for _ in range(2):
        assert sampled(engine) == drawn_without_servers(policy)
    assert len(warnings_with(caplog, "Not used", doubles[1].url, "another model")) == 1


def test_other_ranks_use_the_servers_that_the_main_rank_could_reach():
    pool = ServerPool(["http://a:1", "http://b:1"], limit=1)
    pool.follow([("http://a:1", True), ("http://b:1", True)])
    assert len(pool.in_use) == 2
    pool.follow([("http://a:2", False), ("http://b:1", True)])
    assert [server.url for server in pool.in_use] == ["http://b:1"]
    assert list(pool.lost) == ["http://a:2"]


# Under the trainer


def test_a_run_whose_server_dies_ends_in_the_weights_of_one_without_servers(doubles, tmp_path):
    whole = make_trainer(tmp_path / "whole", importance_sampling_cap=3.0)
    whole.train()

    def die():
        if len(doubles[1].sent("/v1/load_lora_adapter")) == 2:
            doubles[1].stop()

    doubles[1].after_load = die
    urls = [double.url for double in doubles]
    trainer = make_trainer(tmp_path / "vllm", use_vllm=True, vllm_server_base_urls=urls, vllm_server_timeout=5.0)
    trainer.train()
    trainer.close()
    rows = [row for row in metrics_of(tmp_path / "vllm") if "iteration" in row]
    assert [row["sampling/servers"] for row in rows] == [2, 1]
    assert all(row["sampling/logp_gap"] < 1e-4 for row in rows)
    for name, weight in trained(whole.policy).items():
        torch.testing.assert_close(trained(trainer.policy)[name], weight, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "gather"),
    [({"ACCELERATE_USE_CPU": "true"}, True), (sharding_on_cpu.FSDP2, True), (sharding_on_cpu.FSDP2, False)],
    ids=["DDP", "FSDP2", "FSDP2, in step"],
)
def test_two_ranks_share_two_servers_of_which_one_dies(doubles, tmp_path, tokenizer, settings, gather):
    make_model(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = tmp_path / "prompts.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in prompt_rows()))

    def die():
        if len(set(doubles[1].adapters)) == 2:  # the one before is forgotten next
            doubles[1].stop()

    doubles[1].after_load = die
    flags = ["--dataset_name", str(rows), "--reward_funcs", "tiny:happy_reward", "--model_name_or_path"]
    flags += [str(tmp_path / "base"), "--dtype", "float32", "--lora_r", "4", "--per_device_train_batch_size", "4"]
    flags += ["--output_dir", str(tmp_path / "out"), "--use_vllm", "true", "--report_to", "none"]
    flags += [
        "--gather_for_rollout",
        str(gather),
        "--vllm_server_base_urls",
        *(double.url for double in doubles),
        "--vllm_server_timeout",
        "20",
    ]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    result = subprocess.run(
        [
            *launch,
            str(REPOSITORY / "tests/recipes/on_cpu_ranks.py"),
            str(REPOSITORY / "recipes/ppo.py"),
            *flags,
            *PPO_FLAGS,
        ],
        capture_output=True,
        text=True,
        env=os.environ | settings | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
    )
    assert result.returncode == 0, result.stderr
    metrics = [row for row in metrics_of(tmp_path / "out") if "iteration" in row]
    assert [row["sampling/servers"] for row in metrics] == [2, 1]
    assert all(row["sampling/logp_gap"] < 1e-4 for row in metrics)
    assert f"Lost the vLLM server at {doubles[1].url}" in result.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"vllm_server_base_urls": ["a:8000", "http://A:8000/v1"]},
            "vllm_server_base_urls=a:8000 http://A:8000/v1 is invalid: http://a:8000 is given twice. Name each server"
            " once.",
        ),
        (
            {"vllm_server_base_urls": ["http://a:8000", "http://b:port"]},
            "vllm_server_base_urls=http://b:port is invalid: it is not the address of a server. Write"
            " http://host:8000.",
        ),
        (
            {"vllm_server_base_url": "http://a:8000", "vllm_server_base_urls": ["http://b:8000"]},
            "vllm_server_base_url=http://a:8000 is invalid: vllm_server_base_urls is given too. Name all servers"
            " there.",
        ),
        (
            {"vllm_server_base_urls": []},
            "vllm_server_base_urls=[] is invalid: it is not a list of addresses. Write [http://a:8000, http://b:8000].",
        ),
        (
            {"vllm_server_base_url": "http://a b"},
            "vllm_server_base_url=http://a b is invalid: it is not the address of a server. Write http://host:8000.",
        ),
    ],
    ids=["twice", "malformed", "both", "none", "one malformed"],
)
def test_addresses_that_cannot_be_right_are_refused(tmp_path, flags, message):
    with pytest.raises(InputError) as caught:
        make_config(tmp_path, use_vllm=True, **flags)
    assert str(caught.value) == message


def test_addresses_come_from_either_flag(tmp_path):
    assert make_config(tmp_path).vllm_addresses == ["http://127.0.0.1:8000"]
    assert make_config(tmp_path, use_vllm=True, vllm_server_base_url="a:1/v1/").vllm_addresses == ["http://a:1"]
    several = make_config(tmp_path, use_vllm=True, vllm_server_base_urls=["a:1", "https://b/x"])
    assert several.vllm_addresses == ["http://a:1", "https://b/x"]
