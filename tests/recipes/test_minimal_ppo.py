import importlib.util
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[2] / "recipes" / "minimal_ppo.py"


@pytest.fixture(scope="module")
def minimal_ppo():
    spec = importlib.util.spec_from_file_location("minimal_ppo", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model gains nothing from more
    yield module
    torch.set_num_threads(threads)
    del sys.modules[spec.name]


@pytest.mark.parametrize("seed", [0, 1])
def test_it_learns_to_count(minimal_ppo, seed):
    score = minimal_ppo.main(iterations=20, seed=seed)
    assert score["before"] < 0.1  # chance is one in sixteen
    assert score["after"] > 0.4


def test_without_a_learning_rate_it_learns_nothing(minimal_ppo):
    score = minimal_ppo.main(iterations=3, config=minimal_ppo.Config(learning_rate=0.0))
    assert score["after"] == score["before"]


def test_the_first_update_is_on_policy_and_every_token_after_a_stop_is_masked(minimal_ppo):
    config = minimal_ppo.Config()
    torch.manual_seed(0)
    policy, rng = minimal_ppo.Policy(config), torch.Generator().manual_seed(0)
    rollout = minimal_ppo.collect(policy, minimal_ppo.sample_prompts(64, config, rng), config, rng)
    for tokens, mask in zip(rollout.completions.tolist(), rollout.mask.tolist(), strict=True):
        counted = tokens.index(minimal_ppo.STOP) + 1 if minimal_ppo.STOP in tokens else len(tokens)
        assert mask == [True] * counted + [False] * (len(tokens) - counted)
    logprobs, values = minimal_ppo.logprobs_and_values(policy, rollout.prompts, rollout.completions)
    torch.testing.assert_close(logprobs, rollout.logprobs)
    torch.testing.assert_close(values, rollout.values)


def test_the_gold_score_counts_up_and_wraps_around(minimal_ppo):
    prompts, completions = torch.tensor([[9, 9, 14]]), torch.tensor([[15, 1, 2, 7]])
    mask = torch.tensor([[True, True, False, True]])
    rollout = minimal_ppo.Rollout(prompts, completions, mask, torch.zeros(1, 4), torch.zeros(1, 4))
    assert minimal_ppo.gold_score(rollout, minimal_ppo.Config()).tolist() == [0.5]
