"""Environments: episodes of one turn or several, whose completions the policy samples."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.environments.base import Env, EnvFactory, SingleTurn, Turn
    from hf_rlhf.environments.check import check_env

_HOMES = {
    "Env": "hf_rlhf.environments.base",
    "EnvFactory": "hf_rlhf.environments.base",
    "SingleTurn": "hf_rlhf.environments.base",
    "Turn": "hf_rlhf.environments.base",
    "check_env": "hf_rlhf.environments.check",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = ["Env", "EnvFactory", "SingleTurn", "Turn", "check_env"]
