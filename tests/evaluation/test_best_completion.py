"""The best of n completions: its reward is the largest, and one completion is plain sampling."""

import pytest
from tiny import make_model, make_tokenizer

from hf_rlhf.errors import InputError
from hf_rlhf.evaluation import best_of_n
from hf_rlhf.rewards import Rewards
from hf_rlhf.rollout.collect import collect
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import Sampling

ROWS = [{"prompt": "", "prompt_ids": ids} for ids in ([5, 9, 12], [8], [7, 7, 11])]
SEEDS, SAMPLING = [1, 2, 3], Sampling(max_completion_length=6)


def by_ids(prompts, completions, completion_ids):
    """The sum of the ids, and nothing for completions of one token."""
    return [None if len(ids) < 2 else float(sum(ids)) for ids in completion_ids]


def test_the_largest_reward_is_kept_and_more_completions_never_make_it_smaller():
    tokenizer = make_tokenizer()
    engine, rewards = TransformersEngine(make_model(tokenizer).eval(), tokenizer), Rewards([by_ids])
    plain = collect(engine, ROWS, tokenizer, SAMPLING, SEEDS)
    one = best_of_n(engine, ROWS, tokenizer, SAMPLING, SEEDS, rewards, 1)
    assert [each.trajectory.completion.ids for each in one] == [each.completion.ids for each in plain]
    four, eight = (best_of_n(engine, ROWS, tokenizer, SAMPLING, SEEDS, rewards, n) for n in (4, 8))
    for few, many in zip(four, eight, strict=True):
        known = [each.total for each in many.rewards if each.total is not None]
        assert many.reward.total == max(known)
        assert many.reward.total == sum(many.trajectory.completion.ids)
        assert many.reward.total >= few.reward.total
    with pytest.raises(InputError, match="n=0 is invalid"):
        best_of_n(engine, ROWS, tokenizer, SAMPLING, SEEDS, rewards, 0)
