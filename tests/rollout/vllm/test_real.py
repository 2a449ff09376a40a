"""The engine against a real vLLM server: `make test-vllm`, or VLLM_PYTHON=<python of an environment with vLLM>."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from rollout.draws import chi_squared_of_draws
from tiny import happy_reward, make_lora, make_model, make_tokenizer, make_trainer, metrics_of, perturb
from tiny_data import PPO_FLAGS, prompt_rows

from hf_rlhf.models.load import load_causal_lm
from hf_rlhf.models.policy import PolicyWithValue, wrap_policy
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import Sampling, row_seed
from hf_rlhf.rollout.vllm.engine import VLLMEngine
from hf_rlhf.rollout.vllm.server import VLLMServer, server_arguments
from hf_rlhf.types import Sequences

REPOSITORY = Path(__file__).parents[3]
PYTHON = Path(os.environ.get("VLLM_PYTHON") or REPOSITORY / ".venv-vllm" / "bin" / "python")
PROMPTS = [[5, 9, 12], [8], [7, 7, 7, 11, 13, 20], [14, 2], [10, 9, 8, 7], [21, 22], [6]] * 3
SEEDS = [row_seed(0, row) for row in range(len(PROMPTS))]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON.exists(), reason=f"no vLLM at {PYTHON}: make test-vllm, or set VLLM_PYTHON"),
]


@pytest.fixture(scope="module", autouse=True)
def little_memory():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # GB
        yield


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    """A tiny model with heads as wide as vLLM's attention on CPU wants them."""
    folder, tokenizer = tmp_path_factory.mktemp("base"), make_tokenizer()
    sizes = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    make_model(tokenizer, **sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def policy(base_folder):
    model = wrap_policy(load_causal_lm(base_folder, dtype="float32"), make_lora())
    return perturb(PolicyWithValue(model), only="lora").eval()


@pytest.fixture(scope="module")
def server(base_folder, tmp_path_factory):
    model = wrap_policy(load_causal_lm(base_folder, dtype="float32"), make_lora())
    arguments = server_arguments(model, max_length=64, max_logprobs=29, on_cpu=True, more="--seed 0")
    server = VLLMServer(str(PYTHON), arguments, tmp_path_factory.mktemp("server") / "server.log")
    server.start()
    yield server
    server.end()


@pytest.fixture
def engine(policy, tokenizer, server, tmp_path):
    engine = VLLMEngine(policy.model, tokenizer, server.url, tmp_path / "vllm")
    yield engine
    engine.close()


def ids_of(completions):
    return [completion.ids for completion in completions]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_completion_length=10),
        Sampling(max_completion_length=10, temperature=0.7),
        Sampling(max_completion_length=10, temperature=1.3, top_k=4, top_p=0.9),
        Sampling(max_completion_length=10, top_k=4, min_p=0.2),
    ],
    ids=["plain", "cold", "top_p", "min_p"],
)
def test_log_probabilities_are_those_of_the_trainers_forward_pass(engine, policy, sampling):
    completions = engine.generate(PROMPTS, sampling, SEEDS)
    support = [completion.support for completion in completions]
    with torch.no_grad():
        sequences = Sequences.from_ids(PROMPTS, ids_of(completions), None, support)
        own = policy(sequences, temperature=sampling.temperature).logprobs
    for row, completion in zip(own, completions, strict=True):
        logprobs = torch.tensor(completion.logprobs)
        torch.testing.assert_close(row[: len(completion.ids)], logprobs, rtol=1e-4, atol=1e-4)
        assert (completion.support is not None) == sampling.truncated
        for allowed in completion.support or []:
            assert 1 <= len(allowed) <= 4


def test_greedy_completions_are_those_of_transformers(engine, policy, tokenizer):
    greedy = Sampling(max_completion_length=8, temperature=0)
    own = TransformersEngine(policy.model, tokenizer).generate(PROMPTS, greedy, SEEDS)
    served = engine.generate(PROMPTS, greedy, SEEDS)
    assert ids_of(served) == ids_of(own)
    assert all(completion.logprobs == [0.0] * len(completion.ids) for completion in served)


def test_seeds_say_what_is_drawn_and_adapters_what_from(engine, policy):
    sampling = Sampling(max_completion_length=10)
    first = ids_of(engine.generate(PROMPTS, sampling, SEEDS))
    assert ids_of(engine.generate(PROMPTS, sampling, SEEDS)) == first
    assert ids_of(engine.generate(PROMPTS[5:9], sampling, SEEDS[5:9])) == first[5:9]
    others = ids_of(engine.generate(PROMPTS, sampling, [seed + 1 for seed in SEEDS]))
    assert sum(a != b for a, b in zip(first, others, strict=True)) > 15
    perturb(policy, only="lora", seed=8)
    changed = ids_of(engine.generate(PROMPTS, sampling, SEEDS))
    assert sum(a != b for a, b in zip(first, changed, strict=True)) > 15
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    plain = TransformersEngine(policy.model.get_base_model(), engine.tokenizer)
    greedy = Sampling(max_completion_length=8, temperature=0)
    assert ids_of(engine.generate(PROMPTS, greedy, SEEDS)) == ids_of(plain.generate(PROMPTS, greedy, SEEDS))


def test_draws_follow_the_softmax(engine, policy):
    """28 degrees of freedom stay below 62 in all but 2 of 10,000 cases."""
    assert chi_squared_of_draws(engine, policy.model, PROMPTS[0], draws=1000) < 62


def test_completions_end_at_stop_tokens_stop_strings_and_the_limit(engine, tokenizer):
    sampling = Sampling(max_completion_length=20, stop_token_ids=(9, 10), stop_strings=("cat", "good"))
    ends = {tokenizer.eos_token_id, 9, 10, *tokenizer.convert_tokens_to_ids(["cat", "good"])}
    completions = engine.generate(PROMPTS * 3, sampling, list(range(63)))
    assert {completion.ids[-1] for completion in completions if completion.stopped} == ends
    for completion in completions:
        assert ends.isdisjoint(completion.ids[:-1])
        assert completion.stopped == (completion.ids[-1] in ends)
        assert completion.stopped or len(completion.ids) == 20
        assert len(completion.ids) == len(completion.logprobs)


def test_a_run_goes_on_when_the_server_is_killed_and_started_again(tmp_path, base_folder, server):
    starting = []

    def reward(prompts, completions, **columns):
        starting.append(None)
        if len(starting) == 2:
            server.end()
            threading.Timer(2, server.start).start()
        return happy_reward(prompts, completions)

    trainer = make_trainer(
        tmp_path,
        model=load_causal_lm(base_folder, dtype="float32"),
        reward=reward,
        use_vllm=True,
        vllm_server_base_url=server.url,
        vllm_server_timeout=600.0,
        max_steps=12,
    )
    trainer.train()
    trainer.close()
    rows = [row for row in metrics_of(tmp_path) if "iteration" in row]
    assert [row["iteration"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row["sampling/logp_gap"] < 1e-4  # so each iteration was sampled with its own weights


def test_two_ranks_share_a_server_that_ends_with_their_run(tmp_path, base_folder):
    rows = tmp_path / "prompts.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in prompt_rows()))
    flags = ["--dataset_name", str(rows), "--reward_funcs", "tiny:happy_reward", "--model_name_or_path", base_folder]
    flags += ["--dtype", "float32", "--lora_r", "4", "--per_device_train_batch_size", "4", "--output_dir"]
    flags += [str(tmp_path / "out"), "--use_vllm", "true", "--vllm_python", str(PYTHON), "--vllm_server_timeout", "600"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*launch, str(REPOSITORY / "recipes" / "ppo.py"), *flags, *PPO_FLAGS, "--report_to", "none"],
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]),
        },
    )
    assert result.returncode == 0, result.stderr
    metrics = [row for row in metrics_of(tmp_path / "out") if "iteration" in row]
    assert [row["iteration"] for row in metrics] == [1, 2]
    assert all(row["sampling/logp_gap"] < 1e-4 for row in metrics)
    left = [file.name for file in (tmp_path / "out" / "vllm").iterdir()]
    assert left == ["server.log"]
    command = (tmp_path / "out" / "vllm" / "server.log").read_text().splitlines()[0]
    port = command.split()[-1]
    assert not [
        process
        for process in Path("/proc").glob("[0-9]*/cmdline")
        if f"--port\0{port}".encode() in process.read_bytes()
    ]
