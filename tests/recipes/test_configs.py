"""Every YAML that ships is read as strictly as a user's, and every launcher config is one accelerate knows."""

from pathlib import Path

import pytest
import yaml

from hf_rlhf.cli.parsing import parse_arguments
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.recipes.ai_feedback_arguments import AIFeedbackArguments
from hf_rlhf.recipes.arguments import (
    DataArguments,
    ModelArguments,
    PPOArguments,
    RewardArguments,
    RewardTrainingArguments,
    SFTTrainingArguments,
)
from hf_rlhf.recipes.segments import SegmentsArguments
from hf_rlhf.rounds.arguments import RoundsArguments

RECIPES = Path(__file__).parents[2] / "recipes"
CONFIGS = sorted((RECIPES / "configs").glob("*/*.yaml"))
DATACLASSES = {
    "ai_feedback": [AIFeedbackArguments],
    "ppo": [PPOArguments, PPOConfig, ModelArguments],
    "rounds": [RoundsArguments, ModelArguments],
    "segments": [SegmentsArguments, ModelArguments],
    "reward": [RewardArguments, RewardTrainingArguments, ModelArguments],
    "sft": [DataArguments, SFTTrainingArguments, ModelArguments],
}


def test_there_are_configs():
    assert {file.parent.name for file in CONFIGS} == {
        "quickstart", "hh_rlhf", "tldr", "moderation", "rounds", "segments", "recommendation", "arithmetic",
    }  # fmt: skip


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_config_is_valid_and_says_how_to_launch_it(file):
    kinds = DATACLASSES[file.stem]
    on_cpu = ["--use_cpu", "true"] if any("use_cpu" in kind.__dataclass_fields__ for kind in kinds) else []
    parsed = parse_arguments(kinds, ["--config", str(file), *on_cpu], "test")
    assert parsed[0].dataset_name
    header = file.read_text(encoding="utf-8").split("\n\n")[0]
    for word in ("# Hardware:", "Time:", "# Launch:", f"--config {file.relative_to(RECIPES.parent)}"):
        assert word in header


@pytest.mark.parametrize("file", sorted((RECIPES / "accelerate_configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_launcher_config_is_one_accelerate_reads(file):
    from accelerate.commands.config.config_args import ClusterConfig

    assert yaml.safe_load(file.read_text(encoding="utf-8"))["compute_environment"] == "LOCAL_MACHINE"
    assert ClusterConfig.from_yaml_file(yaml_file=str(file)).num_processes >= 1


def test_the_command_line_wins_over_the_file(tmp_path):
    file = tmp_path / "ppo.yaml"
    file.write_text("kl_coef: 0.3\ncliprange: 0.1\n", encoding="utf-8")
    _, config, _ = parse_arguments(DATACLASSES["ppo"], ["--config", str(file), "--kl_coef", "5e-2"], "test")
    assert (config.kl_coef, config.cliprange) == (0.05, 0.1)
