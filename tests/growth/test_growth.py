"""Work costs by the token: neither larger rollouts nor longer completions make a token dearer.

It may become cheaper, as calls and weights are shared by more of them.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from tiny import make_tokenizer

MOST = 1.15


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def benchmark():
    file = Path(__file__).parents[2] / "benchmarks" / "growth.py"
    spec = importlib.util.spec_from_file_location("growth", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def of_larger(benchmark, folder, sizes):
    """Return by phase the cost of a token at the last size, as a multiple of that at the first.

    Measuring ends once no phase is above `MOST`, or after ten rounds. The fastest of several rounds only falls, so that
    a busy machine costs rounds and not the verdict.
    """
    tokenizer = make_tokenizer()
    tokenizer.eos_token = tokenizer.chat_template = None  # nothing ends a completion but its length
    trainers = {size: benchmark.make_trainer(size, benchmark.random_llama(), tokenizer, folder) for size in sizes}
    multiples = {}
    for number, results in enumerate(benchmark.seconds_a_token(trainers, rounds=10)):
        multiples = benchmark.growth(results)[sizes[-1]]
        if number >= 2 and all(multiple <= MOST for multiple in multiples.values()):
            break
    return multiples


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "sizes",
    [[(8, 32), (128, 32)], [(8, 32), (8, 256)]],
    ids=["16 times the completions", "8 times the tokens of each"],
)
def test_a_token_of_a_larger_rollout_is_no_dearer(tmp_path, benchmark, one_thread, sizes):
    multiples = of_larger(benchmark, tmp_path, [benchmark.Size(*size) for size in sizes])
    dearer = {phase: multiple for phase, multiple in multiples.items() if multiple > MOST}
    assert not dearer
