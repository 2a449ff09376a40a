"""Keys and values of the tokens so far, for sampling: written in place, and rows can be dropped."""

import inspect

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from hf_rlhf.types import Model


class RoomyLayer(DynamicLayer):
    """One layer's keys and values, with room for all tokens from the start.

    transformers' own layer copies all it holds for each new token, so that a completion's cost grows with the square of its
    length.

    Args:
        longest: tokens of the longest sequence, prompt and completion.
    """

    def __init__(self, longest: int):
        super().__init__()
        self.longest = longest
        self._rooms: tuple[Tensor, Tensor] | None = None  # of which `keys` and `values` are the filled part

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Add keys and values `(B, heads, new, D)`; returns all of them, `(B, heads, L, D)`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        done = self.get_seq_length()
        end = done + key_states.shape[-2]
        if self._rooms is None:
            self._rooms = self._with_room(self.keys, key_states), self._with_room(self.values, value_states)
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[..., done:end, :] = states
        self.keys, self.values = (room[..., :end, :] for room in self._rooms)
        return self.keys, self.values

    def _with_room(self, held: Tensor | None, states: Tensor) -> Tensor:
        room = states.new_empty(*states.shape[:-2], self.longest, states.shape[-1])
        if held is not None and held.numel():
            room[..., : held.shape[-2], :] = held
        return room

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        super().batch_select_indices(indices)
        self._rooms = None


def cache_of_rows(causal_lm: Model, longest: int) -> DynamicCache | None:
    """A cache from which rows can be dropped; None where the architecture keeps something else than keys and values."""
    if "past_key_values" not in inspect.signature(causal_lm.forward).parameters:
        return None
    cache = DynamicCache(config=causal_lm.config.get_text_config(decoder=True))
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return None
    cache.layers = [RoomyLayer(longest) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
