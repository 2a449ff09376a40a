"""Sharing on the Hugging Face Hub."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.hub.model_card import policy_card, reward_model_card, sft_card
    from hf_rlhf.hub.push import push_folder

_HOMES = {
    "policy_card": "hf_rlhf.hub.model_card",
    "push_folder": "hf_rlhf.hub.push",
    "reward_model_card": "hf_rlhf.hub.model_card",
    "sft_card": "hf_rlhf.hub.model_card",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = ["policy_card", "push_folder", "reward_model_card", "sft_card"]
