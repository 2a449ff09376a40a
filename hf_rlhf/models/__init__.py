"""Models: loading, adapters on one frozen backbone, the policy with its value head, reward models."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.models.adapted import load_policy
    from hf_rlhf.models.adapters import use_adapter
    from hf_rlhf.models.critics import build_critic
    from hf_rlhf.models.heads import ValueHead
    from hf_rlhf.models.load import load_causal_lm, load_tokenizer
    from hf_rlhf.models.policy import PolicyOutput, PolicyWithValue, wrap_policy
    from hf_rlhf.models.reward_model import load_reward_model, load_reward_tokenizer
    from hf_rlhf.models.value_model import ValueModel, load_value_model

_HOMES = {
    "PolicyOutput": "hf_rlhf.models.policy",
    "PolicyWithValue": "hf_rlhf.models.policy",
    "ValueHead": "hf_rlhf.models.heads",
    "ValueModel": "hf_rlhf.models.value_model",
    "build_critic": "hf_rlhf.models.critics",
    "load_causal_lm": "hf_rlhf.models.load",
    "load_policy": "hf_rlhf.models.adapted",
    "load_reward_model": "hf_rlhf.models.reward_model",
    "load_reward_tokenizer": "hf_rlhf.models.reward_model",
    "load_tokenizer": "hf_rlhf.models.load",
    "load_value_model": "hf_rlhf.models.value_model",
    "use_adapter": "hf_rlhf.models.adapters",
    "wrap_policy": "hf_rlhf.models.policy",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = [
    "PolicyOutput",
    "PolicyWithValue",
    "ValueHead",
    "ValueModel",
    "build_critic",
    "load_causal_lm",
    "load_policy",
    "load_reward_model",
    "load_reward_tokenizer",
    "load_tokenizer",
    "load_value_model",
    "use_adapter",
    "wrap_policy",
]
