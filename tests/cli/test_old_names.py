"""Names from elsewhere are answered with the name that a flag has here."""

from dataclasses import fields

import pytest

from hf_rlhf.cli.parsing import parse_arguments
from hf_rlhf.compat.names import OF_THE_LAUNCHER, RENAMED, REPLACED, TRAINER_ARGUMENTS
from hf_rlhf.errors import InputError
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.trainer import PPOTrainer
from hf_rlhf.recipes.arguments import (
    ModelArguments,
    PPOArguments,
    RewardArguments,
    RewardTrainingArguments,
)

PPO = [PPOArguments, PPOConfig, ModelArguments]
REWARD = [RewardArguments, RewardTrainingArguments, ModelArguments]
FLAGS = {field.name for part in PPO for field in fields(part)}


def message(parts, key, file=None):
    argv = [f"--{key}", "1"] if file is None else ["--config", str(file)]
    if file is not None:
        file.write_text(f"{key}: 1\n", encoding="utf-8")
    with pytest.raises(InputError) as error:
        parse_arguments(parts, argv, "hf-rlhf")
    return str(error.value)


def test_new_names_are_flags_and_old_ones_are_not():
    assert set(RENAMED.values()) <= FLAGS
    assert not FLAGS & {*RENAMED, *REPLACED}
    assert not set(RENAMED) & set(REPLACED)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("init_kl_coef", "kl_coef"),
        ("ppo_epochs", "num_ppo_epochs"),
        ("response_length", "max_completion_length"),
        ("log_with", "report_to"),
    ],
)
def test_an_old_name_is_answered_with_the_new_one(tmp_path, old, new):
    assert message(PPO, old) == f'unknown key in the command line: "{old}" is called "{new}" here'
    file = tmp_path / "ppo.yaml"
    assert message(PPO, old, file) == f'unknown key in {file}:1: "{old}" is called "{new}" here'
    assert f'"{old.replace("_", "-")}" is called "{new}" here' in message(PPO, old.replace("_", "-"))


@pytest.mark.parametrize("name", OF_THE_LAUNCHER)
def test_what_the_launcher_decides_is_sent_there(name):
    for parts in (PPO, REWARD):
        answer = message(parts, name)
        assert f'"{name}" is a flag of plan' in answer
        assert "accelerate launch" in answer


@pytest.mark.parametrize("old", [*RENAMED, *REPLACED])
def test_every_old_name_has_an_answer_of_its_own(old):
    answer = message(PPO, old)
    assert f'"{old}" ' in answer
    assert "did you mean" not in answer
    assert "see --help" not in answer


@pytest.mark.parametrize("old", ["init_kl_coef", "batch_size"])
def test_other_commands_do_not_name_flags_that_they_lack(old):
    answer = message(REWARD, old)
    assert f'unknown key "{old}"' in answer
    assert "is called" not in answer
    assert "num_mini_batches" not in answer


@pytest.mark.parametrize("name", ["ratio_threshold", "use_score_scaling", "whiten_rewards", "missing_eos_penalty"])
def test_names_that_stayed_are_still_flags(name):
    assert name in FLAGS


@pytest.mark.parametrize(("old", "answer"), [("init_kl_coef", 'called "kl_coef"'), ("batch_size", "follows from")])
def test_python_is_answered_as_the_command_line_is(old, answer):
    with pytest.raises(InputError, match=answer):
        PPOConfig(output_dir="nowhere", **{old: 1})


def test_arguments_of_the_trainer_by_their_old_names():
    for old, new in TRAINER_ARGUMENTS.items():
        with pytest.raises(InputError, match=f'"{old}" is called "{new}"'):
            PPOTrainer("nowhere", None, None, **{old: None})
    with pytest.raises(InputError, match="the order is"):
        PPOTrainer(None, "nowhere", None)
