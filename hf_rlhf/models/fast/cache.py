"""Keys and values of the tokens so far, for sampling: written in place, and rows can be dropped."""

import inspect

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from hf_rlhf.types import Model


class RoomyLayer(DynamicLayer):
    """One layer's keys and values, with room for all tokens from the start.

    transformers' own layer copies all it holds for each new token, so that a completion's cost grows with the square of
    its length.

    Args:
        longest: tokens of the longest sequence, prompt and completion.
    """

    def __init__(self, longest: int):
        super().__init__()
        self.longest = longest
        self.rooms: tuple[Tensor, Tensor] | None = None  # of which `keys` and `values` are the filled part
        self.fixed: tuple[Tensor, int] | None = None  # see `update`

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Add keys and values `(B, heads, new, D)`; returns all of them, `(B, heads, L, D)`.

        With `fixed`, a place `(1,)` on the device and a width, shapes do not depend on the place: what is there is
        written over, and the whole width is returned. Then whoever set it says with `set_length` what is filled.
        """
        if self.fixed is not None:
            place, width = self.fixed
            keys, values = self.make_room()
            keys.index_copy_(-2, place, key_states)
            values.index_copy_(-2, place, value_states)
            return keys[..., :width, :], values[..., :width, :]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        done = self.get_seq_length()
        end = done + key_states.shape[-2]
        if self.rooms is None:
            self.rooms = self._with_room(self.keys, key_states), self._with_room(self.values, value_states)
        for room, states in zip(self.rooms, (key_states, value_states), strict=True):
            room[..., done:end, :] = states
        return self.set_length(end)

    def make_room(self, *, clean: bool = False) -> tuple[Tensor, Tensor]:
        """Return the room of a layer that holds something; make it if there is none.

        With `clean`, fill the unused part with zeros. A value that a mask hides has to be a number: 0 times NaN is NaN.
        """
        if self.rooms is None:
            assert self.keys is not None
            assert self.values is not None
            self.rooms = self._with_room(self.keys, self.keys), self._with_room(self.values, self.values)
        if clean:
            for room in self.rooms:
                room[..., self.get_seq_length() :, :] = 0
        return self.rooms

    def set_length(self, length: int) -> tuple[Tensor, Tensor]:
        """Mark the first `length` places of the room as filled and return them."""
        keys, values = self.make_room()
        self.keys, self.values = keys[..., :length, :], values[..., :length, :]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Return how many tokens are held; with `fixed`, the width less the token that comes next."""
        return super().get_seq_length() if self.fixed is None else self.fixed[1] - 1

    def _with_room(self, held: Tensor | None, states: Tensor) -> Tensor:
        room = states.new_empty(*states.shape[:-2], self.longest, states.shape[-1])
        if held is not None and held.numel():
            room[..., : held.shape[-2], :] = held
        return room

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        super().batch_select_indices(indices)
        self.rooms = None


CACHE_NAMES = ("cache", "past_key_values")  # of the argument, since transformers 5.24 and before


def cache_argument(causal_lm: Model) -> str | None:
    """Return the name of the argument that takes a cache of keys and values; None for a model without one."""
    parameters = inspect.signature(causal_lm.forward).parameters
    return next((name for name in CACHE_NAMES if name in parameters), None)


def cache_of_rows(causal_lm: Model, longest: int) -> DynamicCache | None:
    """Return a cache from which rows can be dropped; None where a layer keeps more than keys and values."""
    if cache_argument(causal_lm) is None:
        return None
    cache = DynamicCache(config=causal_lm.config.get_text_config(decoder=True))
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return None
    cache.layers = [RoomyLayer(longest) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
