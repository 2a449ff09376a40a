"""`--help` fits on two screens and holds every flag of this project; `--help all` holds those of its libraries too."""

from dataclasses import fields

import pytest

from hf_rlhf.cli import main
from hf_rlhf.cli.help import USED_MOST, own_groups
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.recipes.arguments import DataArguments, ModelArguments, PPOArguments


def page(capsys, *argv):
    with pytest.raises(SystemExit) as end:
        main(list(argv))
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [["quickstart"], ["sft"], ["reward"], ["ppo"], ["plan"], ["data", "ppo"]], ids=" ".join
)
def test_every_command_has_a_page_that_fits(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "110")
    said = page(capsys, *command, "--help")
    assert said.startswith(f"usage: hf-rlhf {' '.join(command)} [--config")
    lines = said.splitlines()
    assert len(lines) <= 260
    assert max(map(len, lines)) <= 110
    flags = [line.split()[0] for line in lines if line.startswith("  --")]
    assert len(flags) == len(set(flags))


def test_the_page_of_ppo_holds_every_flag_of_this_project_under_its_heading(capsys):
    said = page(capsys, "ppo", "--help")
    own = {field.name for each in (PPOConfig, PPOArguments, DataArguments, ModelArguments) for _, group in own_groups(each) for field in group}  # fmt: skip
    assert {"kl_coef", "reward_funcs", "dataset_name", "lora_layers", "use_vllm"} <= own
    fixed = {"logging_nan_inf_filter", "remove_unused_columns", "ignore_data_skip"}  # with one value for PPO
    assert not [name for name in fixed if f"  --{name}" in said]
    for name in (own | set(USED_MOST)) - fixed:
        assert f"  --{name}" in said, name
    algorithm = said[said.index("\nAlgorithm:\n") : said.index("\nKL to the reference:\n")]
    assert "--num_ppo_epochs [4]" in algorithm
    assert "Passes over the completions of an iteration." in algorithm


def test_the_flags_used_most_exist():
    known = {field.name for each in (PPOConfig, ModelArguments) for field in fields(each)}
    assert set(USED_MOST) <= known


def test_help_all_has_the_flags_of_transformers_too(capsys):
    said = page(capsys, "ppo", "--help", "all")
    assert "--torch_compile_backend" in said
    assert "--kl_coef" in said
    assert "--torch_compile_backend" not in page(capsys, "ppo", "-h")
