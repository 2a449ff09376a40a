"""Names from elsewhere are answered with the name that a flag has here."""

from dataclasses import fields

import pytest
import yaml
from tiny import make_trainer

from hf_rlhf.cli.parsing import parse_arguments
from hf_rlhf.compat.names import DEPRECATED, OF_THE_LAUNCHER, RENAMED, RENAMED_STAGES, REPLACED, TRAINER_ARGUMENTS
from hf_rlhf.errors import InputError
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.trainer import PPOTrainer
from hf_rlhf.recipes.arguments import (
    ModelArguments,
    PPOArguments,
    RewardArguments,
    RewardTrainingArguments,
)
from hf_rlhf.records import append_json_line, iteration_rows

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


@pytest.mark.parametrize("old", ["init_kl_coef", "backward_batch_size"])
def test_other_commands_do_not_name_flags_that_they_lack(old):
    answer = message(REWARD, old)
    assert f'unknown key "{old}"' in answer
    assert "is called" not in answer
    assert "num_mini_batches" not in answer


@pytest.mark.parametrize("name", ["ratio_threshold", "use_score_scaling", "whiten_rewards", "missing_eos_penalty"])
def test_names_that_stayed_are_still_flags(name):
    assert name in FLAGS


@pytest.mark.parametrize(
    ("old", "answer"), [("init_kl_coef", 'called "kl_coef"'), ("backward_batch_size", "follows from")]
)
def test_python_is_answered_as_the_command_line_is(old, answer):
    with pytest.raises(InputError, match=answer):
        PPOConfig(output_dir="nowhere", **{old: 1})


def test_arguments_of_the_trainer_by_their_old_names():
    for old, new in TRAINER_ARGUMENTS.items():
        with pytest.raises(InputError, match=f'"{old}" is called "{new}"'):
            PPOTrainer("nowhere", None, None, **{old: None})
    with pytest.raises(InputError, match="the order is"):
        PPOTrainer(None, "nowhere", None)


@pytest.mark.parametrize(("old", "new"), DEPRECATED.items())
def test_a_renamed_flag_is_taken_under_its_old_name_with_a_warning(tmp_path, caplog, old, new):
    value = {"critic_lam": "0.5", "reward_while_sampling": "true", "skip_bad_rows": "3"}[new]
    flags = ["--output_dir", str(tmp_path), "--report_to", "none", "--use_cpu", "true", "--generation_batch_size", "2"]
    file = tmp_path / "ppo.yaml"
    file.write_text(f"{old}: {value}\n", encoding="utf-8")
    for argv in ([f"--{old}", value], [f"--{old.replace('_', '-')}={value}"], ["--config", str(file)]):
        caplog.clear()
        parsed = parse_arguments(PPO, [*flags, *argv], "hf-rlhf ppo")
        values = {name: found for part in parsed for name, found in vars(part).items()}
        assert values[new] == yaml.safe_load(value)
        assert f'is called "{new}" now' in caplog.text


def test_a_renamed_flag_under_both_names_is_refused(tmp_path):
    file = tmp_path / "ppo.yaml"
    file.write_text("value_lam: 0.5\ncritic_lam: 0.6\n", encoding="utf-8")
    with pytest.raises(InputError, match='"value_lam", the old name of "critic_lam"'):
        parse_arguments(PPO, ["--config", str(file)], "hf-rlhf ppo")
    with pytest.raises(InputError, match='both "critic_lam" and its old name "value_lam"'):
        PPOConfig(output_dir=str(tmp_path), value_lam=0.5, critic_lam=0.6)
    with pytest.raises(InputError, match='both "critic_lam" and its old name "value_lam"'):
        parse_arguments(PPO, ["--critic_lam", "0.6", "--value_lam", "0.5"], "hf-rlhf ppo")


def test_a_renamed_flag_works_from_python(tmp_path, caplog):
    assert PPOConfig(output_dir=str(tmp_path), value_lam=0.5, report_to="none", use_cpu=True).critic_lam == 0.5
    assert 'is called "critic_lam" now' in caplog.text


@pytest.mark.parametrize("old", RENAMED_STAGES)
def test_a_stage_under_its_old_name_is_refused(old):
    named = f"Changed.{old} is never called: the stage is {RENAMED_STAGES[old]} now"
    with pytest.raises(TypeError, match=named):
        type("Changed", (PPOTrainer,), {old: lambda self: None})
    with pytest.raises(TypeError, match=named):
        type("Changed", (type("Mixin", (), {old: lambda self: None}), PPOTrainer), {})


def test_a_stage_that_is_set_on_a_trainer_by_its_old_name_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.score = lambda trajectories: None
    with pytest.raises(InputError, match=r"PPOTrainer\.score was set and is never called"):
        trainer.train()


def test_a_value_with_the_name_of_a_flag_is_no_flag(tmp_path):
    argv = ["--skip_bad", "1", "--run_name", "skip_bad_rows", "--output_dir", str(tmp_path), "--report_to", "none"]
    assert parse_arguments(PPO, argv, "hf-rlhf ppo")[0].skip_bad_rows == 1


def test_metrics_of_an_earlier_run_are_read_by_their_new_names(tmp_path):
    append_json_line(tmp_path / "metrics.jsonl", {"iteration": 1, "time/score": 2.0, "time/sample": 1.0})
    assert iteration_rows(tmp_path) == [{"iteration": 1, "time/reward": 2.0, "time/sample": 1.0}]
