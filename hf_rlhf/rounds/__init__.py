"""Rounds of feedback: sample, ask, train a reward model, train the policy, evaluate, and again."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.rounds.arguments import RoundsArguments
    from hf_rlhf.rounds.run import run_rounds

_HOMES = {
    "RoundsArguments": "hf_rlhf.rounds.arguments",
    "run_rounds": "hf_rlhf.rounds.run",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = ["RoundsArguments", "run_rounds"]
