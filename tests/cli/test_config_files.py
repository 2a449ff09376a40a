"""Config files: hostile, damaged or mistyped ones end in one message with the file and, if there is one, the line."""

import random
import time

import pytest
import yaml

from hf_rlhf.cli.config_files import MAX_BYTES, read_config_file
from hf_rlhf.cli.parsing import parse_arguments
from hf_rlhf.errors import InputError
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.recipes.arguments import (
    DataArguments,
    ModelArguments,
    PPOArguments,
    RewardArguments,
    RewardTrainingArguments,
    SFTTrainingArguments,
)

PPO = [PPOArguments, PPOConfig, ModelArguments]
STAGES = [
    PPO,
    [RewardArguments, RewardTrainingArguments, ModelArguments],
    [DataArguments, SFTTrainingArguments, ModelArguments],
]
BILLION_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def refusal_of(file, content, dataclasses=PPO):
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        parse_arguments(dataclasses, ["--config", str(file), "--use_cpu", "true"], "test")
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (BILLION_LAUGHS, ":1", "anchors (&) and aliases (*)"),
        ("run_name: *x\n", ":1", "anchors (&) and aliases (*)"),
        ("kl_coef: 0.1\nrun_name: !!python/object/apply:os.system ['echo']\n", ":2", "tags such as"),
        ("run_name: !mine x\n", ":1", "tags such as"),
        ("run_name: " + "[" * 3000, ":1", "nested more than 20 levels"),
        ("".join(" " * level + "- \n" for level in range(100)), ":21", "nested more than 20 levels"),
        ("kl_coef: 0.1\ncliprange: 0.2\nkl_coef: 0.3\n", ":3", 'the key "kl_coef" is there twice'),
        ("lr_scheduler_kwargs: {a: 1, a: 2}\n", ":1", 'the key "a" is there twice'),
        ("env:\n\tA: 1\n", ":2", "a tab; indent with spaces"),
        (b"kl_coef: 0.1\nrun_name: \xff\n", ":2", "not UTF-8"),
        ("kl_coef: 0.1\n".encode("utf-16"), ":1", "not UTF-8"),
        (b"\x00\x01", ":1 ", "not valid YAML"),
        ("kl_coef: [0.1\n", ":2", "not valid YAML"),
        ("kl_coef: 0.1\nrun_name: 2026-99-99\n", ":2 ", "not valid YAML"),
        ("kl_coef: 0.1\nrun_name: a\0b\n", ":2 ", "a control character"),
        ("seed: 1\nkl_coef: 0x" + "f" * 5000 + "\n", ":2:", "a whole number of more than 64 bits"),
        ("seed: " + "9" * 5000 + "\n", ":1 ", "not valid YAML"),
        ("seed: [{a: 9223372036854775808}]\n", ":1:", "a whole number of more than 64 bits"),
        ("seed: 1\nkl_coef: " + "5:" * 500 + "5.5\n", ":2 ", "not valid YAML"),
        ("#" * (MAX_BYTES + 1), "", "bytes, and no config needs as many"),
        ("", "", "must hold `key: value` lines"),
        ("- kl_coef\n", "", "must hold `key: value` lines"),
        ("? [a, b]\n: 1\n", ":1", "unhashable key"),
        ("help: true\n", "", 'unknown key "help"'),
        ("1: 2\n", "", 'unknown key "1"'),
        ("kl_coef: null\n", "", "it takes a number"),
        ("kl_coef: true\n", "", "it takes a number"),
        ("kl_coef: {a: 1}\n", "", "it takes a number"),
        ("num_ppo_epochs: 1.5\n", "", "it takes a whole number"),
        ("output_dir: [a]\n", "", "it takes text"),
        ("run_name: 2026-01-01\n", "", "it takes text"),
        ("save_strategy: no\n", "", "in quotes"),
        ("stop_token_ids: [1, x, null]\n", "", "it takes a list"),
        ("env: [1]\n", "", "env"),
        ("env: {A=B: 1}\n", "", "'A=B' cannot be a variable"),
    ],
)
def test_one_message_with_file_and_line(tmp_path, content, line, words):
    started = time.monotonic()
    message = refusal_of(tmp_path / "ppo.yaml", content)
    assert f"ppo.yaml{line}" in message
    assert words in message
    assert time.monotonic() - started < 10


def test_a_python_tag_runs_nothing(tmp_path):
    canary = tmp_path / "ran"
    refusal_of(tmp_path / "ppo.yaml", f"run_name: !!python/object/apply:pathlib.Path.touch [{canary}]\n")
    assert not canary.exists()


def test_a_folder_and_a_missing_file_are_told(tmp_path):
    for name in (str(tmp_path), str(tmp_path / "none.yaml"), "a\0b"):
        with pytest.raises(InputError, match="cannot read the config file"):
            parse_arguments(PPO, ["--config", name], "test")


def test_what_is_good_is_read(tmp_path):
    file = tmp_path / "ppo.yaml"
    file.write_bytes(
        b"\xef\xbb\xbf# a comment\nlearning_rate: 1e-5\nkl_coef: 1\nstop_strings: ['a']\nstop_token_ids: [1, 2]\nrun_name: 7\r\n"
        b"lr_scheduler_kwargs: {a: 1}\nsave_strategy: 'no'\ncliprange_value: null\nhub_token: null\nenv: {SOME_NAME: 1}\n"
    )
    assert read_config_file(file).values["env"] == {"SOME_NAME": 1}
    _, config, _ = parse_arguments(PPO, ["--config", str(file), "--use_cpu", "true"], "test")
    assert (config.learning_rate, config.kl_coef, config.stop_strings, config.stop_token_ids) == (
        1e-5,
        1,
        ["a"],
        [1, 2],
    )
    assert (config.cliprange_value, config.lr_scheduler_kwargs) == (None, {"a": 1})


VALUES = [None, True, False, -1, 0, 3, 10**40, 0.5, float("nan"), float("inf"), "", " ", "yes", "none", "1e-3", "-", "é", "x" * 5000,
          [], [None], ["a"], [1], [[1]], {}, {"a": 1}, {"a": [{"b": None}]}, "/nowhere/at all", "a:b", "{", "2026-01-01"]  # fmt: skip


WRITTEN = ["0x" + "f" * 5000, "5:" * 500 + "5.5", "9" * 5000, "9" * 25, "-" + "9" * 25, "0b1", "1_0", "2026-99-99", "2026-01-01T25:00:00",
           "1e400", ".inf", "1:99", "=", "<<", "'", '"', "%", "@", "\t", "? a", "- - -", "!!int x", "*a", "{a: {a: {a: 9999999999999999999}}}"]  # fmt: skip


def run(cases, folder):
    """Count the configs of random values that are refused. Any exception but InputError ends the test."""
    refused = 0
    for number in cases:
        rng = random.Random(number)
        stage = rng.choice(STAGES)
        known = sorted({name for each in stage for name in each.__dataclass_fields__})
        content = {rng.choice(known): rng.choice(VALUES) for _ in range(rng.randrange(1, 3))}
        file = folder / "run.yaml"
        written = f"{rng.choice(known)}: {rng.choice(WRITTEN)}\n" if rng.random() < 0.3 else ""
        file.write_text(yaml.safe_dump(content) + written, encoding="utf-8")
        try:
            parse_arguments(stage, ["--config", str(file), "--use_cpu", "true", "--output_dir", str(folder)], "test")
        except InputError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"case {number}: {content} {written[:100]}") from error
    return refused


def test_random_values_are_taken_or_refused_in_one_message(tmp_path):
    assert 30 < run(range(100), tmp_path) < 100


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_thousand_configs_of_random_values(tmp_path):
    assert 600 < run(range(1000, 3000), tmp_path) < 2000
