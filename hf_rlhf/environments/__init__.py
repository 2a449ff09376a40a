"""Environments: episodes of one turn or several, whose completions the policy samples."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.environments.base import Env, EnvFactory, SingleTurn, Turn
    from hf_rlhf.environments.check import check_env
    from hf_rlhf.environments.dialogue import Dialogue
    from hf_rlhf.environments.gym_text import CartPole, FrozenLake, GymText
    from hf_rlhf.environments.named import load_environment
    from hf_rlhf.environments.recommendation import Recommendation
    from hf_rlhf.environments.segments import Segmented, comparisons, play_segments
    from hf_rlhf.environments.token_env import TokenEnv
    from hf_rlhf.environments.tools import ToolUse
    from hf_rlhf.environments.users import FunctionUser, ModelUser, Scene, ScriptedUser

_HOMES = {
    "CartPole": "hf_rlhf.environments.gym_text",
    "Dialogue": "hf_rlhf.environments.dialogue",
    "Env": "hf_rlhf.environments.base",
    "EnvFactory": "hf_rlhf.environments.base",
    "FrozenLake": "hf_rlhf.environments.gym_text",
    "FunctionUser": "hf_rlhf.environments.users",
    "GymText": "hf_rlhf.environments.gym_text",
    "ModelUser": "hf_rlhf.environments.users",
    "Recommendation": "hf_rlhf.environments.recommendation",
    "Scene": "hf_rlhf.environments.users",
    "ScriptedUser": "hf_rlhf.environments.users",
    "Segmented": "hf_rlhf.environments.segments",
    "SingleTurn": "hf_rlhf.environments.base",
    "TokenEnv": "hf_rlhf.environments.token_env",
    "ToolUse": "hf_rlhf.environments.tools",
    "Turn": "hf_rlhf.environments.base",
    "check_env": "hf_rlhf.environments.check",
    "comparisons": "hf_rlhf.environments.segments",
    "load_environment": "hf_rlhf.environments.named",
    "play_segments": "hf_rlhf.environments.segments",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = [
    "CartPole",
    "Dialogue",
    "Env",
    "EnvFactory",
    "FrozenLake",
    "FunctionUser",
    "GymText",
    "ModelUser",
    "Recommendation",
    "Scene",
    "ScriptedUser",
    "Segmented",
    "SingleTurn",
    "TokenEnv",
    "ToolUse",
    "Turn",
    "check_env",
    "comparisons",
    "load_environment",
    "play_segments",
]
