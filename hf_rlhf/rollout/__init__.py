"""Sampling completions: what to sample, the engines that do it, and their results as trajectories."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.rollout.collect import trajectory_of
    from hf_rlhf.rollout.continuous_batching import ContinuousBatchingEngine
    from hf_rlhf.rollout.engines import Engine, TransformersEngine
    from hf_rlhf.rollout.sampling import Sampling
    from hf_rlhf.rollout.vllm.engine import VLLMEngine

_HOMES = {
    "ContinuousBatchingEngine": "hf_rlhf.rollout.continuous_batching",
    "Engine": "hf_rlhf.rollout.engines",
    "Sampling": "hf_rlhf.rollout.sampling",
    "TransformersEngine": "hf_rlhf.rollout.engines",
    "VLLMEngine": "hf_rlhf.rollout.vllm.engine",
    "trajectory_of": "hf_rlhf.rollout.collect",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = [
    "ContinuousBatchingEngine",
    "Engine",
    "Sampling",
    "TransformersEngine",
    "VLLMEngine",
    "trajectory_of",
]
