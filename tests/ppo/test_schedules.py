"""Sampling that changes over a run: each iteration learns from the log-probabilities of its own temperature."""

import pytest
import torch
from tiny import make_config, make_prompts, make_trainer, metrics_of

from hf_rlhf.errors import InputError


def iterations_of(folder):
    return [row for row in metrics_of(folder) if "iteration" in row]


@pytest.mark.parametrize("cut", [{}, {"top_k": 6, "top_p": 0.95}])
def test_every_iteration_samples_and_learns_at_its_own_temperature(tmp_path, cut):
    used = []
    trainer = make_trainer(tmp_path, temperature=1.5, temperature_end=0.5, max_steps=12, **cut)
    sample = trainer.sample
    trainer.sample = lambda rows, seeds: used.append(trainer.sampling.temperature) or sample(rows, seeds)
    trainer.train()
    assert used == [1.5, 1.0, 0.5]
    rows = iterations_of(tmp_path)
    assert [row["sampling/temperature"] for row in rows] == used
    for row in rows:
        assert row["sampling/logp_gap"] < 1e-5  # sampler and forward pass
        assert row["val/first_ratio_error"] < 1e-5  # forward pass and update


def test_the_greedy_start_shrinks_over_the_run_and_is_never_learned_from(tmp_path):
    trainer = make_trainer(tmp_path, first_greedy_tokens=4, first_greedy_tokens_end=0, max_steps=12, stop_token_ids=[])
    masks = []
    make = trainer.make_experience

    def watched(*args):
        experience = make(*args)
        masks.append(experience.mask)
        return experience

    trainer.make_experience = watched
    trainer.train()
    assert [int((~mask.any(dim=0)).nonzero().numel()) for mask in masks] == [4, 2, 0]
    assert [row["sampling/first_greedy_tokens"] for row in iterations_of(tmp_path)] == [4, 2, 0]


def test_the_users_loop_masks_the_greedy_start_too(tmp_path):
    trainer = make_trainer(tmp_path, first_greedy_tokens=2, learning_rate=0.0)
    prompts = make_prompts(8)["prompt"]
    completions = trainer.generate(prompts)
    bare = [completion.ids for completion in completions]
    seen = []
    trainer.loss = lambda output, experience, loss=trainer.loss: (
        seen.append(experience.mask[:, :2].any()) or loss(output, experience)
    )
    trainer.step(prompts, bare, [1.0] * 8, [[True] * len(ids) for ids in bare])
    assert seen
    assert not torch.stack(seen).any()


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"temperature_end": 0.0}, "temperature_end=0.0"),
        ({"first_greedy_tokens": 8}, "first_greedy_tokens=8"),
        ({"first_greedy_tokens_end": -1}, "first_greedy_tokens_end=-1"),
        ({"first_greedy_tokens": 1, "use_vllm": True}, "first_greedy_tokens=1"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(tmp_path, flags, name):
    with pytest.raises(InputError, match=f"{name} is invalid"):
        make_config(tmp_path, **flags)
