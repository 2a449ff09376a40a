"""The first tokens of a completion without a draw: argmax, never learned from, and no engine draws them unseen."""

import pytest
import torch
from environments.games import TwoTurns
from tiny import make_model

from hf_rlhf.environments.episodes import collect_episodes
from hf_rlhf.errors import InputError
from hf_rlhf.rollout.collect import collect
from hf_rlhf.rollout.continuous_batching import require_batchable
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import Sampling, row_seed
from hf_rlhf.rollout.vllm.completion import completion_request

PROMPTS = [[5, 9, 12], [8], [7, 7, 7, 11, 13, 20], [14, 2], [10, 9, 8, 7], [21, 22], [6]]
ROWS = [{"prompt": "", "prompt_ids": ids} for ids in PROMPTS]
K = 3


def step_logits(model, prompt, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0][len(prompt) - 1 : -1]


@pytest.mark.parametrize("cut", [{}, {"temperature": 0.7, "top_p": 0.9}, {"top_k": 4, "min_p": 0.05}])
def test_the_first_k_tokens_are_argmax_and_the_later_ones_exact_draws_that_vary_with_the_seed(tokenizer, cut):
    model = make_model(tokenizer).double().eval()  # so that only the sampler's own arithmetic rounds
    sampling = Sampling(max_completion_length=8, first_greedy_tokens=K, **cut)
    engine = TransformersEngine(model, tokenizer, batch_size=3)
    several = []
    for run in range(8):
        seeds = [row_seed(run, row) for row in range(len(PROMPTS))]
        trajectories = collect(engine, ROWS, tokenizer, sampling, seeds)
        several.append([tuple(each.completion.ids) for each in trajectories])
        for prompt, each in zip(PROMPTS, trajectories, strict=True):
            ids, logprobs, support = each.completion.ids, each.completion.logprobs, each.completion.support
            logits = step_logits(model, prompt, ids)
            assert ids[:K] == logits.argmax(-1).tolist()[:K]
            assert logprobs[:K] == [0.0] * min(K, len(ids))  # there was no choice
            assert each.mask == [t >= K for t in range(len(ids))]
            allowed = [None] * len(ids) if support is None else list(support)
            assert sampling.truncated == (support is not None)
            assert all(one is None or one.tolist() == [token] for one, token in zip(allowed[:K], ids, strict=False))
            for t in range(K, len(ids)):
                scaled = logits[t] / sampling.temperature
                kept = torch.arange(len(scaled)) if support is None else allowed[t].long()
                expected = scaled[ids[t]] - scaled[kept].logsumexp(0)
                assert logprobs[t] == pytest.approx(expected.item(), abs=1e-6)
    assert len({rows[0][:K] for rows in several}) == 1
    assert len({rows[0] for rows in several}) > 4


def test_rows_that_stop_early_do_not_shift_the_first_tokens_of_others(tokenizer):
    """Half of a batch stops within its greedy tokens, and the rest continues in a batch of its own."""
    model = make_model(tokenizer).eval()
    engine = TransformersEngine(model, tokenizer)
    greedy = engine.generate(PROMPTS, Sampling(max_completion_length=6, temperature=0), [0] * 7)
    stops = tuple({each.ids[0] for each in greedy[:4]})
    sampling = Sampling(max_completion_length=6, first_greedy_tokens=4, stop_token_ids=stops)
    expected = engine.generate(PROMPTS, Sampling(max_completion_length=6, temperature=0, stop_token_ids=stops), [0] * 7)
    found = engine.generate(PROMPTS, sampling, list(range(7)))
    assert len({len(each.ids) for each in found}) > 1
    assert [each.ids[:4] for each in found] == [each.ids[:4] for each in expected]


def test_each_turn_of_an_episode_begins_greedily_and_the_last_choice_is_paid(tokenizer):
    engine = TransformersEngine(make_model(tokenizer).eval(), tokenizer)
    rows = [{"prompt": [{"role": "user", "content": "hello"}]}]
    rows[0]["prompt_ids"] = tokenizer.apply_chat_template(
        rows[0]["prompt"], add_generation_prompt=True, return_dict=False
    )
    sampling = Sampling(max_completion_length=5, first_greedy_tokens=2)
    for seed in range(4):
        (episode,) = collect_episodes(engine, rows, tokenizer, sampling, [seed], TwoTurns)
        paid, mask = episode.env_rewards, torch.tensor(episode.mask)
        assert paid.sum() > 0
        assert paid[~mask].sum() == 0
        assert not mask[:2].any()
        assert mask.any()


def test_engines_that_cannot_do_it_refuse(tokenizer):
    sampling = Sampling(first_greedy_tokens=2)
    with pytest.raises(InputError, match="first_greedy_tokens=2 is invalid: continuous batching"):
        require_batchable(sampling)
    with pytest.raises(InputError, match="first_greedy_tokens=2 is invalid: a vLLM server"):
        completion_request(make_model(tokenizer), tokenizer, sampling)
