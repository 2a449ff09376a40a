"""Tokens: refused where settings are stored; from the environment or a login file they reach nothing but the Hub."""

import subprocess
import sys

import pytest
import tiny
from fake_hub import TOKEN, environment_for, fake_hub
from tiny_data import PPO_FLAGS, conversational_pairs, prompt_rows

from hf_rlhf.cli import main
from hf_rlhf.credentials import hide_tokens, names_a_secret, without_secrets
from hf_rlhf.errors import InputError
from hf_rlhf.recipes.arguments import ModelArguments, RewardArguments, RewardTrainingArguments
from hf_rlhf.recipes.reward import train_reward_model

CANARIES = {"HF_TOKEN": TOKEN, "WANDB_API_KEY": "canarywandb0123456789", "OPENAI_API_KEY": "sk-canary0123456789canary"}


@pytest.fixture
def start(flags, write_rows, tmp_path):
    """Run a recipe of one update in a process of its own, with every canary in place."""

    def run(command, hub, rows=None):
        answer = [{"role": "assistant", "content": "happy cat"}]
        rows = rows or (
            conversational_pairs() if command == "reward" else [row | {"completion": answer} for row in prompt_rows()]
        )
        extra = [*PPO_FLAGS, "--reward_funcs", f"{tiny.__file__}:happy_reward"] if command == "ppo" else []
        argv = [command, "--dataset_name", write_rows(rows), *flags, *extra]
        argv += ["--max_steps", "1", "--save_strategy", "steps", "--save_steps", "1"]
        argv += ["--push_to_hub", "true", "--hub_strategy", "end", "--hub_model_id", "someone/model"]
        login = tmp_path / "hf_home" / "token"
        login.parent.mkdir()
        login.write_text(TOKEN, encoding="utf-8")
        return subprocess.run(
            [sys.executable, "-m", "hf_rlhf.cli", *argv],
            capture_output=True, text=True, env=environment_for(hub, tmp_path) | CANARIES, timeout=250,
        )  # fmt: skip

    return run


@pytest.mark.parametrize(
    "command", [pytest.param("sft", marks=pytest.mark.slow), pytest.param("reward", marks=pytest.mark.slow), "ppo"]
)
def test_what_a_recipe_writes_says_and_pushes_holds_no_secret(start, tmp_path, command):
    with fake_hub() as hub:
        done = start(command, hub)
    assert done.returncode == 0, done.stderr[-3000:]
    out = tmp_path / "out"
    files = [file for file in out.rglob("*") if file.is_file()]
    everything = b"".join(file.read_bytes() for file in files) + done.stdout.encode() + done.stderr.encode()
    assert any(file.name.startswith("optimizer") for file in files)  # a checkpoint was looked at as well
    for canary in CANARIES.values():
        assert canary.encode() not in everything + hub.received
    assert hub.tokens == {f"Bearer {TOKEN}"}
    for name in ("adapter_model.safetensors", "data_report.json", "config.yaml"):
        assert hub.files[name] == (out / name).read_bytes()
    assert not [name for name in hub.files if name.endswith((".bin", ".pt", ".pth")) or "checkpoint" in name]


def test_a_recipe_whose_push_fails_has_saved_its_model_and_exits_with_3(start, tmp_path):
    with fake_hub(403, after=2) as hub:  # after the repository was made, for us and for Trainer
        done = start("reward", hub)
    assert done.returncode == 3, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert "Push it again with: hf upload someone/model" in done.stderr
    assert "--exclude" in done.stderr
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_a_recipe_that_may_not_push_ends_before_it_trains(start, tmp_path):
    with fake_hub(401) as hub:
        done = start("ppo", hub)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Nothing has been trained" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["sft", "reward", "ppo"])
def test_no_repository_is_made_for_data_that_cannot_be_used(start, flags, write_rows, tmp_path, command):
    rows = [{"prompt": "the", "chosen": "a", "rejected": "b", "completion": "a"}] * 2
    with fake_hub() as hub:
        done = start(command, hub, rows)
    assert done.returncode == 2, done.stderr[-3000:]
    assert hub.requests == []


@pytest.mark.parametrize(
    "line",
    [
        f"hub_token: {TOKEN}",
        "hub_token: anything",
        f"run_name: {TOKEN}",
        f"model_name_or_path: https://user:{TOKEN}@huggingface.co/someone/model",
        f"reward_funcs: [a.py:b, '{TOKEN}']",
        "env: {WANDB_API_KEY: anything}",
        f"env: {{MY_NAME: {TOKEN}}}",
        "lr_scheduler_kwargs: {api_key: anything}",
        "run_name: github_pat_abcdefghijABCDEFGHIJ0123",
        "lr_scheduler_kwargs: {a: [{b: [{api_key: anything}]}]}",
        """lr_scheduler_kwargs: '{"a": [{"apiToken": "anything"}]}'""",
        "lr_scheduler_kwargs: {authorization: anything}",
        f"run_name: x%3A{TOKEN}",
        "model_name_or_path: https://user:anything@huggingface.co/someone/model",
    ],
)
def test_a_secret_in_a_config_is_refused_and_not_repeated(capsys, tmp_path, line):
    (tmp_path / "ppo.yaml").write_text(f"kl_coef: 0.1\n{line}\n", encoding="utf-8")
    assert main(["ppo", "--config", str(tmp_path / "ppo.yaml")]) == 2
    said = capsys.readouterr().err
    assert "hf auth login" in said
    assert "HF_TOKEN" in said
    assert "ppo.yaml" in said
    assert TOKEN not in said
    assert "anything" not in said


@pytest.mark.parametrize(
    "argv",
    [
        ["--hub_token", TOKEN],
        ["--hub-token", "anything"],
        [f"--hub_token={TOKEN}"],
        ["--reward_funcs", "a.py:b", TOKEN],
        ["--kl_coef", TOKEN],
        [f"--no_such_flag={TOKEN}"],
        ["--lr_scheduler_kwargs", '{"passphrase": "anything"}'],
        [TOKEN],
    ],
)
@pytest.mark.parametrize("command", ["ppo", "reward", "plan"])
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(capsys, command, argv):
    assert main([command, *argv]) == 2
    said = capsys.readouterr().err
    assert "hf auth login" in said
    assert TOKEN not in said
    assert "anything" not in said


def test_a_token_in_python_settings_is_refused_as_checkpoints_would_hold_it(flags, write_rows, model_folder, tmp_path):
    script = RewardArguments(dataset_name=write_rows(conversational_pairs()))
    training = RewardTrainingArguments(output_dir=str(tmp_path / "out"), hub_token=TOKEN, report_to="none")
    with pytest.raises(InputError, match="hub_token") as refusal:
        train_reward_model(script, training, ModelArguments(model_name_or_path=model_folder, dtype="float32"))
    assert TOKEN not in str(refusal.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_pushes_in_the_background_are_refused(capsys, strategy):
    assert main(["reward", "--push_to_hub", "true", "--hub_strategy", strategy]) == 2
    assert "hub_strategy" in capsys.readouterr().err


def test_what_is_a_secret_and_what_is_none():
    for name in (
        "hub_token",
        "token",
        "HF_TOKEN",
        "api_key",
        "wandb-api-key",
        "client_secret",
        "db_password",
        "apikey",
        "apiToken",
        "passphrase",
        "private_key",
        "Authorization",
    ):
        assert names_a_secret(name), name
    for name in ("eos_token", "pad_token", "stop_token_ids", "max_tokens", "tokenizer", "num_tokens", "token_rewards"):
        assert not names_a_secret(name), name
    assert hide_tokens(f"a {TOKEN} b") == "a <token> b"
    assert hide_tokens(f"a%3A{TOKEN}&x_{TOKEN}") == "a%3A<token>&x_<token>"
    assert hide_tokens("see https://user:word@host/a") == "see https://<token>@host/a"
    for text in (
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "hf_rlhf",
        "runs/hf_rlhf_quickstart_of_today",
        "sk-learn-is-a-nice-library",
        "http://127.0.0.1:8000/v1?to=a@b",
    ):
        assert hide_tokens(text) == text
    nested = {"a": {"hub_token": "x", "b": [TOKEN]}, "eos_token": "<e>"}
    assert without_secrets(nested) == {"a": {"b": ["<token>"]}, "eos_token": "<e>"}
