"""One whole run for all tests of rounds, in a process of its own, so that this one may fork others."""

import datasets  # noqa: F401 - here and not in each of the processes
import pytest
from checkpoint.runs import in_child
from rounds.tiny_rounds import DONE, arguments

from hf_rlhf.ppo import trainer  # noqa: F401
from hf_rlhf.recipes import ppo, reward  # noqa: F401
from hf_rlhf.rounds.run import run_rounds
from hf_rlhf.training import trl_trainers  # noqa: F401


@pytest.fixture(scope="session")
def done(tmp_path_factory):
    """Two rounds with two annotators and the choice by uncertainty."""
    folder = tmp_path_factory.mktemp("rounds")
    errors = folder / "errors.txt"
    assert in_child(lambda: run_rounds(*arguments(folder, **DONE)), stderr=errors) == 0, errors.read_text()
    return folder / "rounds"
