"""Sampling by vLLM servers: one per address, with the adapter of each iteration loaded into them."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.rollout.vllm.engine import VLLMEngine
    from hf_rlhf.rollout.vllm.server import VLLMServer

_HOMES = {
    "VLLMEngine": "hf_rlhf.rollout.vllm.engine",
    "VLLMServer": "hf_rlhf.rollout.vllm.server",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = ["VLLMEngine", "VLLMServer"]
