"""The quickstart chooses what a machine can do in its minutes, and keeps the choice."""

import json

import pytest
from tiny import make_model, make_tokenizer

from hf_rlhf.cli.parsing import parse_arguments
from hf_rlhf.errors import InputError
from hf_rlhf.quickstart import budget
from hf_rlhf.quickstart.arguments import SIZE_FLAGS, QuickstartArguments, Size
from hf_rlhf.quickstart.budget import Plan, plan_quickstart, plan_table, require_size, too_slow
from hf_rlhf.quickstart.prompts import quickstart_prompts
from hf_rlhf.quickstart.replies import messages_of
from hf_rlhf.quickstart.speed import Speed, measure_speed

FULL = Size(messages=216, candidates_per_prompt=4, max_preferences=400, ppo_iterations=18)
SMALLEST = Size(messages=65, candidates_per_prompt=3, max_preferences=120, ppo_iterations=10)


def speed(times):
    """A machine on which each thing takes so many hundredths of a second."""
    return Speed(load=times / 100, **dict.fromkeys(("prompt", "step", "token", "forward", "update"), times / 100))


@pytest.fixture
def machine(monkeypatch):
    """Return the slowness that a quickstart measures, a list of one number, and the list of measurements."""
    slowness, measured = [1.0], []

    def measure(args):
        measured.append(args)
        return speed(slowness[0])

    monkeypatch.setattr(budget, "measure_speed", measure)
    return slowness, measured


def settled(root, **flags):
    return plan_quickstart(QuickstartArguments(output_dir=str(root), **flags), root)


def test_a_fast_machine_does_the_full_size_and_no_more(machine, tmp_path):
    machine[0][0] = 0.001
    assert settled(tmp_path, minutes=1000).args.size == FULL == QuickstartArguments().size


@pytest.mark.parametrize("slowness", [0.7, 0.8, 1.0])
def test_what_is_chosen_fits_and_the_next_larger_does_not(machine, tmp_path, slowness):
    machine[0][0] = slowness
    plan = settled(tmp_path)
    shares = [Size.of_share(share) for share in budget.SHARES]
    place = shares.index(plan.args.size)
    assert 0 < place < len(shares) - 1
    assert plan.total <= 0.9 * 480
    larger = QuickstartArguments(**{name: getattr(shares[place - 1], name) for name in SIZE_FLAGS})
    assert Plan(larger, plan.speed).total > 0.9 * 480 - 1  # less what the measurement took
    assert too_slow(plan) is None


def test_each_smaller_share_takes_less_time():
    plans = [Plan(QuickstartArguments(**_flags(share)), speed(1)) for share in budget.SHARES]
    times = [plan.total for plan in plans]
    assert times == sorted(times, reverse=True)
    assert plans[-1].args.size == SMALLEST


def _flags(share):
    size = Size.of_share(share)
    return {name: getattr(size, name) for name in SIZE_FLAGS}


def test_a_machine_that_is_too_slow_is_told_so_and_gets_the_smallest_size(machine, tmp_path):
    machine[0][0] = 100
    plan = settled(tmp_path)
    assert plan.args.size == SMALLEST
    assert "more than minutes=8" in too_slow(plan)


def test_flags_win_over_the_choice(machine, tmp_path):
    machine[0][0] = 100
    plan = settled(tmp_path, ppo_iterations=15, messages=200)
    assert plan.args.size == Size(200, 3, 120, 15)


def test_a_run_that_goes_on_keeps_its_choice(machine, tmp_path):
    machine[0][0] = 0.8
    first = settled(tmp_path)
    machine[0][0] = 0.01  # by now no other process uses the machine
    again = settled(tmp_path)
    assert again == first
    assert settled(tmp_path, ppo_iterations=5).args.size == Size(*_amounts(first)[:3], 5)
    assert _amounts(settled(tmp_path))[:3] == _amounts(first)[:3]
    assert len(machine[1]) == 1
    assert settled(tmp_path, minutes=9).args.size == FULL
    assert len(machine[1]) == 2


@pytest.mark.parametrize(
    "flags", [{"max_completion_length": 64}, {"num_ppo_epochs": 4}, {"lora_target_modules": "q_proj"}]
)
def test_a_flag_that_changes_the_time_changes_the_choice(machine, tmp_path, flags):
    machine[0][0] = 0.8
    settled(tmp_path / "one")
    assert settled(tmp_path / "one", **flags).args.size == settled(tmp_path / "two", **flags).args.size
    assert len(machine[1]) == 3


def test_a_small_trial_leaves_no_sizes_behind(machine, tmp_path):
    machine[0][0] = 0.8
    settled(tmp_path / "one", messages=10, ppo_iterations=1)
    assert settled(tmp_path / "one").args.size == settled(tmp_path / "two").args.size


@pytest.mark.parametrize("content", ["", '{"chosen": ', "[]", '{"flags": {}}'])
def test_a_torn_or_foreign_plan_is_made_anew(machine, tmp_path, content):
    expected = settled(tmp_path).args.size
    (tmp_path / "plan.json").write_text(content)
    assert settled(tmp_path).args.size == expected


def _amounts(plan):
    return [getattr(plan.args.size, name) for name in SIZE_FLAGS]


def test_the_choice_is_written_as_flags_that_make_it_again_elsewhere(machine, tmp_path):
    machine[0][0] = 0.8
    plan = settled(tmp_path)
    (args,) = parse_arguments([QuickstartArguments], ["--config", str(tmp_path / "config.yaml")], "quickstart")
    assert args == plan.args
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["chosen"] == {name: getattr(args, name) for name in SIZE_FLAGS}
    assert sum(written["expected_seconds"].values()) == pytest.approx(plan.total)


def test_the_table_has_every_stage_with_its_amount_and_time(machine, tmp_path):
    table = plan_table(settled(tmp_path, **_flags(1)))
    stages, amounts, times = (list(column.cells) for column in table.columns)
    assert stages == ["candidates", "preferences", "reward_model", "policy", "evaluation", "all"]
    assert amounts[0] == "4 replies to each of 264 messages"
    assert amounts[3] == "18 iterations of 32 replies"
    assert all(times)


def test_messages_are_spread_over_all_topics():
    everything = quickstart_prompts()
    assert messages_of(QuickstartArguments()) == everything
    some = messages_of(QuickstartArguments(messages=54))
    assert some == {"train": everything["train"][::4], "test": everything["test"][::4]}


@pytest.mark.parametrize(
    "flags", [{"minutes": 0}, {"messages": 217}, {"candidates_per_prompt": 1}, {"ppo_iterations": 0}]
)
def test_sizes_without_a_result_are_refused(flags):
    with pytest.raises(InputError, match=f"{next(iter(flags))}="):
        require_size(QuickstartArguments(**flags))


def test_a_machine_is_measured(tmp_path):
    tokenizer = make_tokenizer()
    make_model(tokenizer, max_position_embeddings=256).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = measure_speed(QuickstartArguments(model_name_or_path=str(tmp_path)))
    assert 0 < found.forward < found.update
    assert found.load > 0
    assert found.step + found.token > 0
