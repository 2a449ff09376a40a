"""The engine against a server that fails in every way a server can; `test_vllm_real.py` has the real one."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from peft import IA3Config
from ranks import run_ranks
from rollout.vllm.double import DROP, VLLMDouble
from tiny import make_lora, make_model, make_trainer, metrics_of, perturb, trained

from hf_rlhf.endpoints.answers import Answer
from hf_rlhf.errors import InputError
from hf_rlhf.models.policy import PolicyWithValue, wrap_policy
from hf_rlhf.ppo.config import VLLM_IMPORTANCE_CAP, PPOConfig
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import Sampling, row_seed
from hf_rlhf.rollout.vllm.client import VLLMClient
from hf_rlhf.rollout.vllm.completion import completion_of, completion_request
from hf_rlhf.rollout.vllm.engine import VLLMEngine
from hf_rlhf.rollout.vllm.server import VLLMServer

REPOSITORY = Path(__file__).parents[3]
PROMPTS = [[5, 9, 12], [8], [7, 7, 7, 11, 13, 20], [14, 2], [10, 9, 8, 7], [21, 22], [6]]
SEEDS = [row_seed(0, row) for row in range(len(PROMPTS))]
SAMPLING = Sampling(max_completion_length=6)


@pytest.fixture
def policy(tokenizer):
    return perturb(PolicyWithValue(wrap_policy(make_model(tokenizer), make_lora())), only="lora").eval()


@pytest.fixture
def server(tokenizer):
    double = VLLMDouble(make_model(tokenizer), tokenizer).start()
    yield double
    double.stop()


@pytest.fixture
def engine(policy, tokenizer, server, tmp_path):
    return VLLMEngine(policy.model, tokenizer, server.url, tmp_path / "vllm", timeout=1.5)


def plain(policy, tokenizer, sampling=SAMPLING):
    return TransformersEngine(policy.model, tokenizer).generate(PROMPTS, sampling, SEEDS)


# What is sent, and what comes back


@pytest.mark.parametrize(
    "sampling",
    [
        SAMPLING,
        Sampling(max_completion_length=6, temperature=0.7),
        Sampling(max_completion_length=6, top_k=4, top_p=0.9, stop_token_ids=(9, 10)),
        Sampling(max_completion_length=6, temperature=0),
    ],
    ids=["plain", "cold", "truncated", "greedy"],
)
def test_completions_are_of_the_policys_adapter_and_in_the_order_of_the_prompts(engine, policy, tokenizer, sampling):
    wanted = plain(policy, tokenizer, sampling)
    for got, own in zip(engine.generate(PROMPTS, sampling, SEEDS), wanted, strict=True):
        assert got.ids == own.ids
        assert got.stopped == own.stopped
        assert got.logprobs == pytest.approx(own.logprobs, abs=1e-5)
        assert (got.support is None) == (own.support is None)
        for allowed, as_here in zip(got.support or [], own.support or [], strict=True):
            assert sorted(allowed.tolist()) == sorted(as_here.tolist())


def test_prompts_go_as_ids_and_leave_nothing_to_the_servers_own_defaults(engine, server):
    engine.generate(PROMPTS, SAMPLING, SEEDS)
    bodies = server.sent("/v1/completions")[-len(PROMPTS) :]
    assert sorted(body["prompt"] for body in bodies) == sorted(PROMPTS)
    assert {body["seed"] for body in bodies} == set(SEEDS)
    for body in bodies:
        assert {"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop_token_ids"} <= set(body)


def test_an_adapter_is_loaded_when_its_weights_have_changed_and_only_then(engine, server, policy, tokenizer):
    engine.generate(PROMPTS, SAMPLING, SEEDS)
    engine.generate(PROMPTS, SAMPLING, SEEDS)
    assert len(server.sent("/v1/load_lora_adapter")) == 1
    first = next(iter(server.adapters))
    perturb(policy, only="lora", seed=8)
    completions = engine.generate(PROMPTS, SAMPLING, SEEDS)
    assert [completion.ids for completion in completions] == [own.ids for own in plain(policy, tokenizer)]
    assert len(server.adapters) == 1
    assert first not in server.adapters
    assert [folder.name for folder in engine.folder.iterdir()] == list(server.adapters)
    engine.close()
    assert server.adapters == {}
    assert not list(engine.folder.iterdir())


def test_adapters_that_a_killed_run_left_are_removed(engine):
    left = engine.folder / "policy-0123456789abcdef"
    left.mkdir(parents=True)
    engine.generate(PROMPTS[:1], SAMPLING, SEEDS[:1])
    assert not left.exists()
    assert len(list(engine.folder.glob("policy-*"))) == 1


def test_no_prompts_give_no_completions(engine):
    assert engine.generate([], SAMPLING, []) == []


def test_requests_are_at_most_as_many_at_once_as_allowed(policy, tokenizer, server, tmp_path):
    engine = VLLMEngine(policy.model, tokenizer, server.url, tmp_path, concurrency=1)
    engine.generate(PROMPTS, SAMPLING, SEEDS)
    assert [body["prompt"] for body in server.sent("/v1/completions")[1:]] == PROMPTS  # one by one, so in order


def test_the_key_of_the_environment_is_sent(engine, server, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "of-the-test")
    engine.generate(PROMPTS[:1], SAMPLING, SEEDS[:1])
    assert all(headers["Authorization"] == "Bearer of-the-test" for *_, headers in server.requests)


@pytest.mark.parametrize("wrong", ["ftp://host:1", "http://", "http://host:port"])
def test_an_address_that_is_none_is_refused(wrong):
    with pytest.raises(InputError, match="vllm_server_base_url"):
        VLLMClient(wrong)


@pytest.mark.parametrize("given", ["127.0.0.1:8000", "http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"])
def test_an_address_may_be_written_in_several_ways(given):
    assert VLLMClient(given).base_url == "http://127.0.0.1:8000"


# A server that is lost


def test_a_server_that_is_not_there_is_named_with_the_line_that_starts_it(policy, tokenizer, tmp_path):
    engine = VLLMEngine(policy.model, tokenizer, "http://127.0.0.1:9", tmp_path, timeout=0.1)
    with pytest.raises(InputError) as caught:
        engine.generate(PROMPTS, SAMPLING, SEEDS)
    for part in (
        "http://127.0.0.1:9",
        "vllm_server_timeout=0.1",
        "--enable-lora",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("fault", [DROP, (500, {"error": {"message": "EngineDeadError"}}), (503, "no")])
def test_what_a_failing_server_left_undone_is_asked_for_again(engine, server, policy, tokenizer, fault):
    engine.generate(PROMPTS, SAMPLING, SEEDS)
    server.planned.extend([fault] * 2)
    completions = engine.generate(PROMPTS, SAMPLING, SEEDS)
    assert [completion.ids for completion in completions] == [own.ids for own in plain(policy, tokenizer)]


def test_a_restarted_server_gets_the_adapter_again(engine, server, policy, tokenizer):
    engine.generate(PROMPTS, SAMPLING, SEEDS)
    server.adapters.clear()
    completions = engine.generate(PROMPTS, SAMPLING, SEEDS)
    assert [completion.ids for completion in completions] == [own.ids for own in plain(policy, tokenizer)]
    assert len(server.sent("/v1/load_lora_adapter")) == 2  # once, though every request missed it


def test_a_server_that_comes_back_in_time_is_waited_for(engine, server, policy, tokenizer):
    engine.generate(PROMPTS, SAMPLING, SEEDS)
    server.stop()
    later = threading.Timer(0.6, server.start)
    later.start()
    completions = engine.generate(PROMPTS, SAMPLING, SEEDS)
    later.join()
    assert [completion.ids for completion in completions] == [own.ids for own in plain(policy, tokenizer)]


def test_a_server_that_stays_away_ends_the_run(engine, server):
    engine.generate(PROMPTS, SAMPLING, SEEDS)
    server.stop()
    start = time.monotonic()
    with pytest.raises(InputError, match="no vLLM server answered"):
        engine.generate(PROMPTS, SAMPLING, SEEDS)
    assert 1.5 <= time.monotonic() - start < 5  # the seven requests waited together


OUT_OF_MEMORY = (500, {"error": {"message": "out of memory"}})


def test_a_server_that_fails_at_one_completion_each_time_ends_the_run(engine, server, monkeypatch):
    engine.generate(PROMPTS, SAMPLING, SEEDS)
    answer = server.answer

    def fail_at_the_first_prompt(path, body, headers):
        of_the_batch = body.get("max_tokens") == SAMPLING.max_completion_length  # and not to compare the models
        return OUT_OF_MEMORY if of_the_batch and body["prompt"] == PROMPTS[0] else answer(path, body, headers)

    monkeypatch.setattr(server, "answer", fail_at_the_first_prompt)
    with pytest.raises(InputError, match=r"failed 3 times at the same completion, at last: out of memory"):
        engine.generate(PROMPTS, SAMPLING, SEEDS)


def test_a_server_that_fails_at_every_completion_ends_the_run(engine, server):
    engine.generate(PROMPTS, SAMPLING, SEEDS)
    server.planned.extend([OUT_OF_MEMORY] * 100)
    with pytest.raises(InputError, match=r"failed 3 times at the adapter .*: out of memory"):
        engine.generate(PROMPTS, SAMPLING, SEEDS)


# A server that was started again with another model


def test_another_base_is_refused_by_its_name_when_nothing_was_asked_for_meanwhile(engine, server, policy):
    engine.generate(PROMPTS, SAMPLING, SEEDS)
    server.stop()
    server.root = "another"
    server.start()
    perturb(policy, only="lora", seed=8)
    with pytest.raises(
        InputError, match=r"it serves another, but this run samples from tiny\. Start it with --model tiny"
    ):
        engine.generate(PROMPTS, SAMPLING, SEEDS)


@pytest.mark.parametrize("meanwhile", ["new weights", "the same weights"])
def test_another_base_of_the_same_name_is_noticed_by_its_log_probabilities(
    engine, server, policy, tokenizer, meanwhile
):
    engine.generate(PROMPTS, SAMPLING, SEEDS)
    server.stop()
    server.base = make_model(tokenizer, seed=5)
    server.start()
    if meanwhile == "new weights":  # with the same ones nothing is loaded, so the first completions miss the adapter
        perturb(policy, only="lora", seed=8)
    with pytest.raises(InputError, match="it serves another model than the policy's base"):
        engine.generate(PROMPTS, SAMPLING, SEEDS)


# A server that cannot do it


def fails_at_once(engine, match):
    with pytest.raises(InputError, match=match):
        engine.generate(PROMPTS, SAMPLING, SEEDS)


def test_a_server_without_runtime_lora_is_told_which_variable_it_lacks(engine, server):
    server.runtime_lora = False
    fails_at_once(engine, "VLLM_ALLOW_RUNTIME_LORA_UPDATING")


def test_a_server_on_another_disk_is_told_from_one_without_loras(engine, server, monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    fails_at_once(engine, "under the same path")


def test_what_the_server_refuses_is_said_in_its_words(engine, server):
    server.planned.append((400, {"error": {"message": "max_tokens cannot be greater than max_model_len=4"}}))
    fails_at_once(engine, "max_model_len=4")


def test_another_model_is_noticed_before_the_first_batch(policy, tokenizer, tmp_path):
    other = VLLMDouble(make_model(tokenizer, seed=5), tokenizer).start()
    fails_at_once(VLLMEngine(policy.model, tokenizer, other.url, tmp_path), "another model")
    assert len(other.sent("/v1/completions")) == 1
    other.stop()


def test_another_vocabulary_is_noticed(engine, server):
    server.beyond_vocabulary = True
    fails_at_once(engine, "vocabulary")


def test_raw_logprobs_are_noticed(engine, server):
    server.processed_logprobs = False
    fails_at_once(engine, "--logprobs-mode processed_logprobs")


@pytest.mark.parametrize(
    "garbage",
    [
        "<html>It works!</html>",
        {"choices": []},
        {"choices": [{"text": " happy", "finish_reason": "stop"}]},
        {"choices": [{"token_ids": [3], "finish_reason": "odd", "logprobs": {"token_logprobs": [-1], "top_logprobs": [{}]}}]},
        [1, 2],
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_answer_of_vllm_is_refused(engine, server, garbage):
    server.planned.append((200, garbage))
    fails_at_once(engine, "return_token_ids")


def test_more_ties_than_the_server_lists_are_not_passed_over(tokenizer):
    policy = wrap_policy(make_model(tokenizer, vocab_size=100), make_lora())
    request = completion_request(policy, tokenizer, Sampling(top_k=1))
    assert request["logprobs"] == 66
    tied = {f"token_id:{token}": -1.0 for token in range(66)}
    logprobs = {"token_logprobs": [-1.0], "top_logprobs": [tied]}
    body = {"choices": [{"token_ids": [3], "finish_reason": "stop", "logprobs": logprobs}]}
    with pytest.raises(InputError, match="equally likely"):
        completion_of(Answer(200, json.dumps(body)), Sampling(top_k=1), 100)
    tied["token_id:65"] = -9999.0
    completion = completion_of(Answer(200, json.dumps(body)), Sampling(top_k=1), 100)
    assert completion.support[0].tolist() == list(range(65))


@pytest.mark.parametrize(
    ("sampling", "match"),
    [
        (Sampling(top_p=0.9), "top_k"),
        (Sampling(min_p=0.1), "top_k"),
        (Sampling(stop_strings=tuple("abcde")), "4"),
        (Sampling(stop_token_ids=(1000,)), "1000"),
    ],
)
def test_sampling_that_the_server_cannot_do_is_refused(engine, server, sampling, match):
    with pytest.raises(InputError, match=match):
        engine.generate(PROMPTS, sampling, SEEDS)
    assert server.requests == []


@pytest.mark.parametrize(
    ("adapter", "match"),
    [
        (None, "full fine-tuning"),
        (make_lora(use_dora=True), "use_dora"),
        (make_lora(target_modules=["q_proj"], modules_to_save=["lm_head"]), "modules_to_save"),
        (make_lora(target_modules=["q_proj"], trainable_token_indices=[3]), "trainable_token_indices"),
        (make_lora(target_modules=["q_proj", "embed_tokens"]), "embeddings"),
        (make_lora(target_modules=["q_proj", "lm_head"]), "head"),
        (IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"), "IA3"),
    ],
    ids=["full", "dora", "modules_to_save", "tokens", "embeddings", "head", "ia3"],
)
def test_policies_that_vllm_cannot_load_are_refused_before_anything_runs(tmp_path, adapter, match):
    with pytest.raises(InputError, match=match):
        make_trainer(tmp_path, lora=adapter, use_vllm=True)


# Under the trainer


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"vllm_python": "python"}, "use_vllm"),
        ({"vllm_server_base_url": "http://host:8000"}, "use_vllm"),
        ({"vllm_server_base_urls": ["http://host:8000"]}, "use_vllm"),
        ({"use_vllm": True, "vllm_python": "python", "vllm_server_base_urls": ["http://host:8000"]}, "vllm_python"),
        ({"use_vllm": True, "vllm_python": "python", "vllm_server_base_url": "http://host:8000"}, "vllm_python"),
        ({"use_vllm": True, "vllm_server_args": "--seed 1"}, "vllm_python"),
        ({"use_vllm": True, "vllm_server_timeout": 0}, "vllm_server_timeout"),
        ({"use_vllm": True, "top_p": 0.9}, "top_k"),
        ({"use_vllm": True, "vllm_python": "/no/such/python"}, "no name or folder"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(tmp_path, wrong, match):
    with pytest.raises(InputError, match=match):
        make_trainer(tmp_path, **wrong)


def test_ranks_that_sample_parts_of_their_own_share_no_server(tmp_path, monkeypatch):
    monkeypatch.setattr(PPOConfig, "world_size", property(lambda config: 2))
    with pytest.raises(
        InputError, match="use_vllm=True is invalid: it must be omitted with reward_while_sampling on several ranks"
    ):
        PPOConfig(output_dir=str(tmp_path), use_vllm=True, reward_while_sampling=True, generation_batch_size=2)


@pytest.mark.parametrize(
    ("flags", "cap"),
    [
        ({}, None),
        ({"use_vllm": True}, VLLM_IMPORTANCE_CAP),
        ({"use_vllm": True, "importance_sampling_cap": 0}, None),
        ({"use_vllm": True, "importance_sampling_cap": 2.0}, 2.0),
    ],
)
def test_a_servers_log_probabilities_are_corrected_unless_that_is_switched_off(tmp_path, flags, cap):
    from tiny import make_config

    assert make_config(tmp_path, **flags).importance_cap == cap


def test_a_run_goes_on_when_its_server_is_restarted_in_the_middle(tmp_path, server, tokenizer):
    """The double draws as the transformers engine does, so that the run must end in the same weights, nearly."""
    whole = make_trainer(tmp_path / "whole", importance_sampling_cap=3.0)
    whole.train()

    def restart():
        if len(server.sent("/v1/load_lora_adapter")) == 2:
            server.adapters.clear()
            server.planned.append(DROP)  # one, and the lost adapter: a completion is asked for three times

    server.after_load = restart
    trainer = make_trainer(tmp_path / "vllm", use_vllm=True, vllm_server_base_url=server.url, vllm_server_timeout=5.0)
    trainer.train()
    trainer.close()
    assert len(server.sent("/v1/load_lora_adapter")) >= 3
    rows = [row for row in metrics_of(tmp_path / "vllm") if "iteration" in row]
    assert len(rows) == 2
    for row in rows:
        assert row["sampling/logp_gap"] < 1e-4
        assert row["sampling/importance_weight"] == pytest.approx(1, abs=1e-4)
    for name, weight in trained(whole.policy).items():
        torch.testing.assert_close(trained(trainer.policy)[name], weight, rtol=1e-3, atol=1e-4, msg=name)
    assert not any((tmp_path / "vllm" / "vllm").iterdir())


DOUBLE_AS_PYTHON = """#!{python}
import os, sys, threading
from rollout.vllm.double import VLLMDouble
from tiny import make_model, make_tokenizer
double = VLLMDouble(make_model(make_tokenizer()), make_tokenizer())
double.port = int(sys.argv[sys.argv.index("--port") + 1])
double.delay = {delay}
with open({pids!r}, "a") as pids:
    pids.write(f"{{os.getpid()}}\\n")
double.start()
threading.Event().wait()
"""


def double_as_python(folder, delay=0.0):
    """Write an executable `folder/python` that serves the double, and notes its process in `folder/pids`."""
    python, pids = folder / "python", folder / "pids"
    python.write_text(DOUBLE_AS_PYTHON.format(python=sys.executable, pids=str(pids), delay=delay))
    python.chmod(0o755)
    return python, pids


@pytest.mark.slow
def test_a_server_of_the_runs_own_that_dies_is_started_again(policy, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "tests"))))
    python, pids = double_as_python(tmp_path)
    server = VLLMServer(str(python), [], tmp_path / "server.log")
    engine = VLLMEngine(policy.model, tokenizer, server, tmp_path / "vllm", timeout=60)
    wanted = [own.ids for own in plain(policy, tokenizer)]
    assert [completion.ids for completion in engine.generate(PROMPTS, SAMPLING, SEEDS)] == wanted
    os.kill(int(pids.read_text().split()[-1]), signal.SIGKILL)
    assert [completion.ids for completion in engine.generate(PROMPTS, SAMPLING, SEEDS)] == wanted
    assert len(pids.read_text().split()) == 2
    engine.close()
    assert not server.running
    assert not engine.pool.servers[0].client.healthy()


@pytest.mark.slow
def test_a_server_of_the_runs_own_is_started_again_for_ranks_that_still_sample(policy, tokenizer, tmp_path):
    _, pids = double_as_python(tmp_path, delay=0.3)
    done = run_ranks([Path(__file__).with_name("own_server_script.py"), tmp_path], folder=tmp_path)
    assert "is started again for the other ranks" in done.stderr
    assert len(pids.read_text().split()) == 2
    sampled = json.loads((tmp_path / "sampled1.json").read_text())
    assert sampled == [own.ids for own in plain(policy, tokenizer)]
    assert json.loads((tmp_path / "sampled0.json").read_text()) == []


def test_a_server_of_the_runs_own_that_stays_away_is_named_with_its_log(policy, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_rlhf.rollout.vllm.engine.rank", lambda: 1)  # rank 0 alone sees the process
    server = VLLMServer("python", [], tmp_path / "server.log")
    engine = VLLMEngine(policy.model, tokenizer, server, tmp_path / "vllm", timeout=0.1)
    with pytest.raises(
        InputError, match=rf"no vLLM server answered at .*\nits log is {tmp_path / 'server.log'}"
    ) as caught:
        engine._recover("policy-0", None)
    assert "Start it with" not in str(caught.value)
