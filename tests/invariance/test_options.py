"""With every option that touches a sum over a batch, one process gives the same however it cuts its batches."""

import pytest
from invariance.runs import RUNS, assert_same, iterations_of, train


@pytest.mark.parametrize("name", RUNS)
def test_accumulation_and_batch_sizes_change_nothing(whole, tmp_path, name):
    size = RUNS[name].get("per_device_train_batch_size", 8)
    train(
        tmp_path,
        name,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=size,
        generation_batch_size=3,
        rollout_forward_batch_size=5,
    )
    assert_same(whole(name), tmp_path)


@pytest.mark.parametrize("name", ["trunk", "upper blocks"])
@pytest.mark.parametrize("padding_free", [True, False])
def test_a_trunk_that_is_computed_in_every_pass(whole, tmp_path, name, padding_free):
    train(tmp_path, name, reuse_trunk=False, padding_free=padding_free)
    assert_same(whole(name), tmp_path)


# The runs above do what they are there for


def test_some_updates_are_skipped_and_some_are_made(whole):
    for row in iterations_of(whole("losses")):
        assert row["policy/skipped_updates"] > 0
        assert row["policy/updates"] > 0
        assert row["policy/dual_clipfrac_avg"] > 0
        assert abs(row["sampling/importance_weight"] - 1) > 1e-4


def test_an_iteration_stops_midway(whole):
    warm_up, *others = iterations_of(whole("stops"))
    assert warm_up["policy/updates"] == 4
    assert warm_up["val/ratio"] == pytest.approx(1)
    assert all(0 < row["policy/updates"] < 4 for row in others)


def test_the_coefficient_moves(whole):
    first, second = iterations_of(whole("scores"))
    assert first["objective/kl_coef"] != second["objective/kl_coef"]


def test_some_micro_batches_have_no_counted_token(whole):
    for row in iterations_of(whole("sparse")):
        assert row["rewards/unscored"] == 14 / 16
        assert row["completions/mean_length"] < 3
        assert row["policy/empty_updates"] >= 4  # two or three of the four minibatches, in each of two epochs
        assert row["policy/updates"] + row["policy/empty_updates"] == 8
