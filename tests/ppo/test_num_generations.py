"""Several completions of each prompt in an iteration: groups that stay together, in `train` and in the user's loop."""

import pytest
from tiny import happy_reward, make_config, make_prompts, make_trainer, trained

from hf_rlhf.distributed import homes
from hf_rlhf.errors import InputError


def watched(folder, **flags):
    """A trainer and the trajectories that it will sample."""
    seen = []
    trainer = make_trainer(folder, **{"num_generations": 4, "max_steps": 8, **flags})
    sample = trainer.sample

    def keep(rows, seeds):
        seen.append(sample(rows, seeds))
        return seen[-1]

    trainer.sample = keep
    return trainer, seen


def test_an_iteration_has_several_completions_of_each_of_fewer_prompts(tmp_path):
    trainer, seen = watched(tmp_path, data=make_prompts(4))
    trainer.train()
    assert len(seen) == 2
    for trajectories in seen:
        numbers = [trajectory.row["number"] for trajectory in trajectories]
        assert numbers[:4] == [numbers[0]] * 4
        assert numbers[4:] == [numbers[4]] * 4
        assert numbers[0] != numbers[4]
        assert len({tuple(trajectory.completion.ids) for trajectory in trajectories[:4]}) > 1
    passes = {trajectory.row["number"] for trajectories in seen for trajectory in trajectories}
    assert passes == {0, 1, 2, 3}  # four prompts are two iterations of two prompts
    assert trainer.updates_per_pass == 8


def test_the_users_loop_makes_the_same_updates_as_train(tmp_path):
    flags = {"advantage_estimator": "leave_one_out"}
    trainer, seen = watched(tmp_path / "train", **flags)
    trainer.train()
    own, _ = watched(tmp_path / "own", **flags)
    for trajectories in seen:
        prompts = [trajectory.row["prompt"] for trajectory in trajectories]
        completions = own.generate(prompts[::4])
        assert [each.ids for each in completions] == [each.completion.ids for each in trajectories]
        texts = [[{"role": "assistant", "content": trajectory.text}] for trajectory in trajectories]
        own.step(prompts, completions, happy_reward(prompts, texts))
    weights = trained(own.policy)
    assert all((weight == weights[name]).all() for name, weight in trained(trainer.policy).items())


def test_a_step_on_prompts_that_are_no_groups_is_refused(tmp_path):
    trainer, _ = watched(tmp_path)
    prompts = make_prompts(8)["prompt"]
    with pytest.raises(InputError, match="no groups of num_generations=4, see prompt 1"):
        trainer.step(prompts, [[9]] * 8, [1.0] * 8)


def test_a_group_lies_on_one_rank_and_has_the_place_that_it_has_in_one_process():
    found = homes([4, 4], group=2)
    assert [tuple(home) for home in found] == [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]


def test_completions_that_are_no_multiple_are_refused(tmp_path):
    with pytest.raises(InputError, match="num_generations=3 is invalid: it must be at least 1, and a divisor of the 8"):
        make_config(tmp_path, num_generations=3)
