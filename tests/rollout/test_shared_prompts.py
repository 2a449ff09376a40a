"""Several completions of one prompt: the prompt is computed once, and they are those of as many copies of it."""

import pytest
from rollout.test_engines import PROMPTS, make_sliding_model
from tiny import make_model

from hf_rlhf.rollout import engines
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import Sampling, row_seed

FOUR = [prompt for prompt in PROMPTS for _ in range(4)]
SEEDS = [row_seed("four", row) for row in range(len(FOUR))]


@pytest.fixture
def tokens_computed(monkeypatch):
    """Count the tokens that go through a model's first block."""

    def watch(model):
        seen = []
        model.model.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:2].numel()))
        return seen

    return watch


@pytest.mark.parametrize("make", [make_model, make_sliding_model], ids=["full attention", "sliding window"])
@pytest.mark.parametrize("cut", [{}, {"top_k": 5, "first_greedy_tokens": 2}], ids=["plain", "truncated"])
def test_completions_are_those_of_four_copies_of_the_prompt(tokenizer, monkeypatch, tokens_computed, make, cut):
    model = make(tokenizer).eval()
    sampling = Sampling(max_completion_length=10, **cut)
    counts = tokens_computed(model)
    shared = TransformersEngine(model, tokenizer).generate(FOUR, sampling, SEEDS)
    once = sum(counts)
    monkeypatch.setattr(engines, "_compute_prompts_once", lambda *args: None)
    counts.clear()
    copies = TransformersEngine(model, tokenizer).generate(FOUR, sampling, SEEDS)
    assert [each.ids for each in shared] == [each.ids for each in copies]
    assert [each.stopped for each in shared] == [each.stopped for each in copies]
    for one, other in zip(shared, copies, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    width = max(map(len, PROMPTS))
    assert sum(counts) - once == (len(FOUR) - len(PROMPTS)) * (width - 1)


def test_equal_ids_behind_padding_are_not_taken_for_one_prompt(tokenizer):
    """The padding has the id 0, and a prompt may have it too."""
    model, prompts = make_model(tokenizer).eval(), [[0, 9], [9], [0, 9]]
    sampling = Sampling(max_completion_length=8)
    whole = TransformersEngine(model, tokenizer).generate(prompts, sampling, [1, 2, 3])
    alone = TransformersEngine(model, tokenizer, batch_size=1).generate(prompts, sampling, [1, 2, 3])
    assert [each.ids for each in whole] == [each.ids for each in alone]
