"""Single rows of embeddings or head that an adapter trains (`trainable_token_indices`).

They are needed where PEFT's own layer is not enough.
"""

from typing import Any

from peft.utils.other import TrainableTokensWrapper

from hf_rlhf.types import Model


class TrainedTokens(TrainableTokensWrapper):
    """PEFT's wrapper of the module whose rows are trained, beside adapters that train none.

    PEFT asks each adapter for its rows, and fails; and of the module it shows the weight alone, where TRL's loss reads
    the head's bias.
    """

    def adapter_state_dict(self, adapter_name: str, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Like the method of PEFT's wrapper, but empty for an adapter that trains no rows."""
        return super().adapter_state_dict(adapter_name, state_dict) if adapter_name in self._adapters else {}

    def adapter_state_dict_load_map(self, adapter_name: str) -> dict[str, str]:
        """Like the method of PEFT's wrapper, but empty for an adapter that trains no rows."""
        return super().adapter_state_dict_load_map(adapter_name) if adapter_name in self._adapters else {}

    def _hasattr_wrapped(self, name: str, modules: Any) -> bool:
        return hasattr(modules["token_adapter"].base_layer, name)

    def _getattr_wrapped(self, name: str, modules: Any) -> Any:
        if name == "weight":
            return super()._getattr_wrapped(name, modules)
        return getattr(modules["token_adapter"].base_layer, name)


def mend_trained_tokens(model: Model) -> None:
    """Let all wrappers of trained tokens in `model` be `TrainedTokens`. Weights and names stay."""
    for module in model.modules():
        if type(module) is TrainableTokensWrapper:
            module.__class__ = TrainedTokens
