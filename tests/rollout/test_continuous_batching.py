"""transformers' continuous batching as an engine, beside the static one."""

import pytest
import torch
from tiny import make_lora, make_model, make_trainer, metrics_of, perturb

from hf_rlhf.errors import InputError
from hf_rlhf.models.backbone import counted_ids, counted_states, logits_head
from hf_rlhf.models.fast.attention import FUSED, PACKED, attention, training_attention
from hf_rlhf.models.policy import PolicyWithValue, wrap_policy
from hf_rlhf.ops.logprobs import token_logprobs
from hf_rlhf.rollout.continuous_batching import ContinuousBatchingEngine
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.types import Sequences

PROMPTS = [[5, 9, 12], [8], [7, 7, 7, 11, 13, 20], [14, 2], [10, 9, 8, 7], [21, 22], [6]] * 3
SEEDS = list(range(len(PROMPTS)))


@pytest.fixture
def policy(tokenizer):
    model = make_model(tokenizer)
    model.set_attn_implementation(FUSED)
    return perturb(PolicyWithValue(wrap_policy(model, make_lora())), only="lora").eval()


def test_greedy_completions_are_those_of_static_batches(policy, tokenizer):
    sampling = Sampling(max_completion_length=12, temperature=0)
    static = TransformersEngine(policy.model, tokenizer).generate(PROMPTS, sampling, SEEDS)
    paged = ContinuousBatchingEngine(policy.model, tokenizer).generate(PROMPTS, sampling, SEEDS)
    assert [(one.ids, one.stopped, one.logprobs) for one in paged] == [
        (one.ids, one.stopped, one.logprobs) for one in static
    ]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_of_the_distribution_that_was_sampled_from(policy, tokenizer, temperature):
    sampling = Sampling(max_completion_length=12, temperature=temperature, stop_token_ids=(9, 10))
    engine = ContinuousBatchingEngine(policy.model, tokenizer)
    completions = engine.generate(PROMPTS, sampling, SEEDS)
    ends = {tokenizer.eos_token_id, 9, 10}
    for completion in completions:
        assert completion.stopped == (completion.ids[-1] in ends)
        assert completion.stopped or len(completion.ids) == 12
        assert ends.isdisjoint(completion.ids[:-1])
    assert {completion.stopped for completion in completions} == {True, False}
    causal_lm = policy.model.get_base_model()
    sequences = Sequences.from_ids(PROMPTS, [completion.ids for completion in completions])
    with torch.no_grad():
        states = counted_states(causal_lm, sequences)
        wanted = token_logprobs(states, counted_ids(sequences), logits_head(causal_lm), temperature=temperature)
    found = torch.tensor([logprob for completion in completions for logprob in completion.logprobs])
    torch.testing.assert_close(found, wanted.logprobs, rtol=0, atol=1e-5)


def test_the_same_seeds_give_the_same_draws_and_nothing_else_moves(policy, tokenizer):
    causal_lm = policy.model.get_base_model()
    engine, sampling = ContinuousBatchingEngine(policy.model, tokenizer), Sampling(max_completion_length=8)
    assert training_attention([causal_lm], "cpu", 64, packing=True, recomputes=False) == {causal_lm: PACKED}
    policy.train()
    before = torch.get_rng_state()
    with attention(causal_lm, PACKED):
        first = engine.generate(PROMPTS, sampling, SEEDS)
        assert causal_lm.config._attn_implementation == PACKED
    assert torch.equal(torch.get_rng_state(), before)
    assert policy.training
    assert [one.ids for one in engine.generate(PROMPTS, sampling, SEEDS)] == [one.ids for one in first]
    others = engine.generate(PROMPTS, sampling, [seed + 1 for seed in SEEDS])
    assert [one.ids for one in others] != [one.ids for one in first]
    assert engine.generate([], sampling, []) == []


@pytest.mark.parametrize(
    "settings", [{"top_k": 4}, {"top_p": 0.9}, {"min_p": 0.1}, {"stop_strings": ("hello",)}], ids=str
)
def test_what_it_cannot_do_is_refused(policy, tokenizer, settings):
    with pytest.raises(InputError, match="continuous batching"):
        ContinuousBatchingEngine(policy.model, tokenizer).generate([[5]], Sampling(**settings), [0])


def test_a_run_samples_by_it(tmp_path):
    flags = {"use_transformers_continuous_batching": True, "max_steps": 4}
    trainer = make_trainer(tmp_path / "run", transformers_continuous_batching_config={"num_blocks": 64}, **flags)
    trainer.model.model.get_base_model().set_attn_implementation(FUSED)
    trainer.train()
    (row,) = [row for row in metrics_of(tmp_path / "run") if "iteration" in row]
    assert row["sampling/logp_gap"] < 1e-5
    with pytest.raises(InputError, match="top_p"):
        make_trainer(tmp_path / "other", top_p=0.9, **flags)
    with pytest.raises(InputError, match="transformers_continuous_batching_config"):
        make_trainer(tmp_path / "wrong", transformers_continuous_batching_config={"pages": 3}, **flags).train()
