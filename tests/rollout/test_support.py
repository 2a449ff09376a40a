"""Completions that do not say what their tokens were chosen from are read as sampled with the run's settings."""

import pytest
import torch
from tiny import make_model, make_tokenizer

from hf_rlhf.errors import InputError
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.rollout.support import fill_in_support
from hf_rlhf.types import Completion, Trajectory

TOKENIZER = make_tokenizer()
SETTINGS = {
    "top-k": {"top_k": 5},
    "top-p": {"top_p": 0.7},
    "min-p": {"min_p": 0.3},
    "hot": {"top_p": 0.7, "temperature": 2.0},
    "all": {"top_k": 8, "top_p": 0.9, "min_p": 0.1, "temperature": 0.7},
}
PROMPTS = [[7, 8, 9], [10], [11, 12, 13, 14, 15], [16, 17]]


def trajectory_of(prompt, completion, mask=None):
    return Trajectory({"prompt_ids": prompt}, prompt, completion, "", mask)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_it_is_what_the_engine_chose_from(settings):
    model, sampling = make_model(TOKENIZER), Sampling(max_completion_length=6, **settings)
    sampled = TransformersEngine(model, TOKENIZER).generate(PROMPTS, sampling, [1, 2, 3, 4])
    bare = [
        trajectory_of(prompt, Completion(each.ids, [], each.stopped))
        for prompt, each in zip(PROMPTS, sampled, strict=True)
    ]
    fill_in_support(model, TOKENIZER, bare, sampling, batch_size=3)
    for each, filled in zip(sampled, bare, strict=True):
        assert [ids.tolist() for ids in filled.completion.support] == [ids.tolist() for ids in each.support]
    assert 1 < max(len(ids) for each in sampled for ids in each.support) < len(TOKENIZER)


def test_what_is_said_stays_as_it_is_and_nothing_given_is_changed():
    given = Completion([8, 9], [], False, [torch.tensor([8, 9])] * 2)
    bare = Completion([8], [], False)
    trajectories = [trajectory_of([7], given), trajectory_of([7], bare)]
    fill_in_support(make_model(TOKENIZER), TOKENIZER, trajectories, Sampling(top_k=29), batch_size=8)
    assert trajectories[0].completion is given
    assert bare.support is None
    assert trajectories[1].completion.support[0].tolist() == list(range(29))


# Rounding, on logits whose probabilities are known: the likeliest token has 0.6, then 0.3, 0.06 and 0.04


def support_of(token, monkeypatch, *, dtype=torch.float32, mask=None, **settings):
    logits = torch.full((1, 29), -100.0)
    logits[0, :4] = torch.tensor([0.6, 0.3, 0.06, 0.04]).log()
    monkeypatch.setattr("hf_rlhf.rollout.support.logits_head", lambda _: lambda states: logits.expand(len(states), -1))
    trajectory = trajectory_of([7], Completion([token], [], False), mask)
    fill_in_support(make_model(TOKENIZER).to(dtype), TOKENIZER, [trajectory], Sampling(**settings), batch_size=1)
    return trajectory.completion.support[0].tolist()


def test_the_allowed_tokens_are_those_of_each_setting(monkeypatch):
    assert support_of(0, monkeypatch, top_k=2) == [0, 1]
    assert support_of(0, monkeypatch, top_p=0.85) == [0, 1]
    assert support_of(0, monkeypatch, top_p=0.95) == [0, 1, 2]
    assert support_of(0, monkeypatch, min_p=0.09) == [0, 1, 2]  # 0.054
    assert support_of(0, monkeypatch, min_p=0.09, temperature=0.5) == [0, 1]  # 0.06^2 is less than 0.09 * 0.6^2


@pytest.mark.parametrize("settings", [{"top_p": 0.9 - 1e-6}, {"min_p": 0.1 + 1e-6}], ids=["top-p", "min-p"])
def test_a_token_that_rounding_puts_outside_is_taken_in(monkeypatch, settings):
    assert support_of(0, monkeypatch, **settings) == [0, 1]
    assert support_of(2, monkeypatch, **settings) == [0, 1, 2]
    with pytest.raises(InputError, match=r"its token 0, .*\(id 3\), is not among the 2 that (top_p|min_p)="):
        support_of(3, monkeypatch, **settings)


def test_bf16_rounds_more(monkeypatch):
    assert support_of(3, monkeypatch, dtype=torch.bfloat16, top_k=3) == [0, 1, 2, 3]  # log(0.06 / 0.04) is 0.4
    with pytest.raises(InputError, match="is not among the 3"):
        support_of(3, monkeypatch, top_k=3)
    with pytest.raises(InputError, match="is not among the 1"):
        support_of(1, monkeypatch, dtype=torch.bfloat16, top_k=1)  # log 2


def test_a_token_that_does_not_count_may_be_any(monkeypatch):
    assert support_of(9, monkeypatch, top_k=2, mask=[False]) == [9]
