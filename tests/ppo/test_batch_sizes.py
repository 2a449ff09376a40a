"""`rollout_batch_size` and `num_mini_batches`: one is given, the other follows."""

from dataclasses import replace

import pytest
import yaml

from hf_rlhf.cli.parsing import parse_arguments
from hf_rlhf.errors import InputError
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.records import write_settings


def sizes(folder, **flags):
    given = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, **flags}
    return PPOConfig(output_dir=str(folder), use_cpu=True, report_to="none", **given)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, (1, 8)),
        ({"num_mini_batches": 3}, (3, 24)),
        ({"rollout_batch_size": 24}, (3, 24)),
        ({"rollout_batch_size": 24, "num_mini_batches": 3}, (3, 24)),
    ],
    ids=str,
)
def test_the_size_that_is_not_given_follows(tmp_path, flags, expected):
    config = sizes(tmp_path, **flags)
    assert (config.num_mini_batches, config.rollout_batch_size) == expected
    assert config.rank_batch_size == config.rollout_batch_size
    assert config.updates_per_iteration == 4 * expected[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"rollout_batch_size": 20}, r"no multiple of the minibatch's 8 completions \(4 per device x 2.*Take 16"),
        ({"rollout_batch_size": 4}, "Take 8"),
        ({"rollout_batch_size": 0}, "Take 8"),
        ({"rollout_batch_size": 16, "num_mini_batches": 3}, "rollout_batch_size=16 holds 2 minibatches of 8"),
        ({"num_mini_batches": 0}, "num_mini_batches=0 is invalid: it must be at least 1"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0 is invalid: it must be at least 1"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_one_message(tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        sizes(tmp_path, **flags)


def test_the_rollout_stays_on_other_numbers_of_ranks(tmp_path):
    assert sizes(tmp_path, rollout_batch_size=64).on_ranks(4).num_mini_batches == 2
    by_minibatches = sizes(tmp_path, num_mini_batches=8).on_ranks(4)
    assert (by_minibatches.num_mini_batches, by_minibatches.rollout_batch_size) == (8, 256)
    with pytest.raises(InputError, match="holds 2 minibatches of 32 completions on 4 ranks"):
        sizes(tmp_path, rollout_batch_size=64, num_mini_batches=8).on_ranks(4)
    with pytest.raises(InputError, match="4 ranks"):
        sizes(tmp_path, rollout_batch_size=16).on_ranks(4)


@pytest.mark.parametrize("given", [{"rollout_batch_size": 32}, {"num_mini_batches": 2}], ids=str)
def test_config_yaml_holds_what_was_given_and_starts_the_same_run(tmp_path, given):
    config = sizes(tmp_path / "run", **given)
    write_settings(tmp_path, config)
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert {name: written.get(name) for name in ("rollout_batch_size", "num_mini_batches")} == {
        "rollout_batch_size": None,
        "num_mini_batches": None,
        **given,
    }
    (again,) = parse_arguments([PPOConfig], ["--config", str(tmp_path / "config.yaml")], "hf-rlhf ppo")
    assert again.to_dict() == config.to_dict()
    assert again.rollout_batch_size == config.rollout_batch_size
    (larger,) = parse_arguments(
        [PPOConfig],
        ["--config", str(tmp_path / "config.yaml"), "--per_device_train_batch_size", "8"],
        "hf-rlhf ppo",
    )
    assert larger.rollout_batch_size == 32


def test_a_copy_with_another_setting_derives_the_same_size(tmp_path):
    given = sizes(tmp_path, rollout_batch_size=32)
    assert replace(given, learning_rate=1.0).to_dict()["rollout_batch_size"] == 32
    assert replace(given, per_device_train_batch_size=8).num_mini_batches == 2
    other = replace(sizes(tmp_path, num_mini_batches=4), learning_rate=1.0)
    assert "rollout_batch_size" not in other.to_dict()
    assert replace(other, num_mini_batches=2).rollout_batch_size == 16


def test_a_size_that_is_set_later_changes_the_derived_one(tmp_path):
    config = sizes(tmp_path)
    config.num_mini_batches = 3
    assert config.rollout_batch_size == 24
    config.set_dataloader(train_batch_size=2)
    assert config.rollout_batch_size == 12
    given = sizes(tmp_path, rollout_batch_size=32)
    given.gradient_accumulation_steps = 4
    assert given.num_mini_batches == 2
    with pytest.raises(InputError, match="Give one of the two"):
        given.num_mini_batches = 3


def test_a_flag_that_is_set_by_its_old_name_is_set(tmp_path):
    config = sizes(tmp_path)
    config.value_lam = 0.5  # pyright: ignore
    assert config.critic_lam == 0.5
