"""A decoding step as a CUDA graph: its thousand kernels are launched one by one once, and by one call from then on.

On a GPU a step of a small batch takes longer to launch than to compute. What is replayed must have fixed shapes and places:
keys and values are written at an index that lies on the device, and attention looks at all the room there is, of which the
attention mask hides the part that is not filled yet.
"""

import functools
import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hf_rlhf.rollout.cache import RoomyLayer
from hf_rlhf.types import Model

logger = logging.getLogger(__name__)

_WIDTH = 256  # tokens of room by which what a graph looks at grows; then it is recorded anew
_KNOWN = {
    "input_ids",
    "position_ids",
    "attention_mask",
    "past_key_values",
    "logits_to_keep",
    "use_cache",
    "return_dict",
}
_TOLERANCE = {torch.float32: 0.01}  # of the probability that lies elsewhere, see `_require_the_same`
_TOLERANCE_HALF = 0.1  # in bfloat16 and float16, in which two kernels for one product differ


class GraphsDiffer(RuntimeError):
    """A replayed step says something else than the model's own."""


class GraphedSteps:
    """Decoding steps of one model by CUDA graphs, or the plain way where the model's code cannot be recorded.

    The first steps of all are also computed the plain way and compared, at distances that double. A difference ends the use
    of graphs, as does a step that cannot be recorded: `reason` says why.

    Attributes:
        reason: why graphs are not used; None while they are.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._compared = 0  # replayed steps that were or would have been compared
        self._next_comparison = 1

    @contextmanager
    def replace_forward(self, causal_lm: Model, cache: Any) -> Iterator[None]:
        """Within it, `causal_lm` takes its single-token steps by replaying a graph; `cache` is the one that it is given."""
        if self.reason is None:
            self.reason = why_not(causal_lm, cache) if _records(causal_lm.device) else "no CUDA device"
        if self.reason is not None:
            yield
            return
        forward = causal_lm.forward
        step = _Step(self, forward, cache)

        @functools.wraps(forward)  # generate looks at the names of its arguments
        def replayed(*args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs) if args or not step.is_one(kwargs) else step(kwargs)

        causal_lm.forward = replayed
        try:
            yield
        finally:
            del causal_lm.forward

    def compare_now(self) -> bool:
        """Whether this step is one to compare: the 1st, 2nd, 4th, and so on to the 256th."""
        self._compared += 1
        if self._compared < self._next_comparison or self._next_comparison > _WIDTH:
            return False
        self._next_comparison *= 2
        return True


def why_not(causal_lm: Model, cache: Any) -> str | None:
    """Why this model's steps cannot be recorded, as far as that can be told without trying; None if nothing is known."""
    if getattr(causal_lm, "is_quantized", False):
        return "a quantized base"
    if cache is None or any(type(layer) is not RoomyLayer for layer in cache.layers):
        return "this architecture keeps something else than the keys and values of all tokens"
    if hasattr(causal_lm, "_hf_hook") or getattr(causal_lm, "hf_device_map", None):
        return "the model is spread over devices"
    return None


def _records(device: torch.device) -> bool:
    return device.type == "cuda"


class _Step:
    """The step of one batch: recorded for so many rows and so much room, and recorded anew when either changes."""

    def __init__(self, owner: GraphedSteps, forward: Callable[..., Any], cache: Any):
        self.owner, self.forward, self.cache = owner, forward, cache
        self.recorded: _Recorded | None = None

    def is_one(self, kwargs: dict[str, Any]) -> bool:
        """Whether the call is a step of one token with nothing that this class does not know."""
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        return (
            self.owner.reason is None
            and kwargs.keys() <= _KNOWN
            and isinstance(kwargs.get("position_ids"), Tensor)
            and kwargs.get("past_key_values") is self.cache
            and isinstance(ids, Tensor)
            and ids.shape[1] == 1
            and isinstance(mask, Tensor)
            and mask.dim() == 2
        )

    def __call__(self, kwargs: dict[str, Any]) -> Any:
        done = self.cache.get_seq_length()
        plain = None
        if self.owner.compare_now():
            plain = self.forward(**kwargs).logits.clone()
            _set_length(self.cache, done)
        if self.recorded is None or not self.recorded.serves(self.cache, done):
            self.recorded = None
            try:
                self.recorded = _Recorded(self.forward, self.cache, kwargs, done)
            except Exception as error:  # whatever code of models and torch raises where it cannot be recorded
                self.owner.reason = f"its code cannot be recorded ({type(error).__name__}: {str(error)[:120]})"
                logger.warning("sampling goes the plain way, without CUDA graphs: %s", self.owner.reason)
                _set_length(self.cache, done)
                return self.forward(**kwargs)
        output = self.recorded.replay(kwargs, done)
        if plain is not None:
            self._require_the_same(output.logits, plain)
        return output

    def _require_the_same(self, logits: Tensor, plain: Tensor) -> None:
        """Compare two distributions of each row by the probability that lies elsewhere (total variation)."""
        moved = (logits[:, -1].float().softmax(-1) - plain[:, -1].float().softmax(-1)).abs().sum(-1).max().item() / 2
        if not moved <= _TOLERANCE.get(plain.dtype, _TOLERANCE_HALF) and plain.isfinite().all():
            self.owner.reason = f"a replayed step moved {moved:.2f} of a token's probability"
            raise GraphsDiffer(self.owner.reason)


class _Recorded:
    """A graph and the tensors that it reads and writes."""

    def __init__(self, forward: Callable[..., Any], cache: Any, kwargs: dict[str, Any], done: int):
        self.rooms = [layer.make_room() for layer in cache.layers]
        self.cache = cache
        self.width = min(cache.layers[0].longest, (done // _WIDTH + 1) * _WIDTH)
        mask = kwargs["attention_mask"]
        self.ids, self.positions = kwargs["input_ids"].clone(), kwargs["position_ids"].clone()
        self.mask = mask.new_zeros(len(mask), self.width)
        self.mask[:, : mask.shape[1]] = mask
        self.place = torch.tensor([done], device=mask.device)
        fixed = {**kwargs, "input_ids": self.ids, "position_ids": self.positions, "attention_mask": self.mask}

        def step() -> Any:
            with _fixed_places(cache, self.place, self.width), _casts_not_kept():
                return forward(**fixed)

        self.graph, self.output = record(step, mask.device)

    def serves(self, cache: Any, done: int) -> bool:
        """Whether it was recorded for these rows, and has room for one more token."""
        return done < self.width and all(
            layer.rooms is rooms for layer, rooms in zip(cache.layers, self.rooms, strict=True)
        )

    def replay(self, kwargs: dict[str, Any], done: int) -> Any:
        """Take the step after `done` tokens."""
        self.ids.copy_(kwargs["input_ids"])
        self.positions.copy_(kwargs["position_ids"])
        self.mask[:, done] = kwargs["attention_mask"][:, done]
        self.place.fill_(done)
        self.graph.replay()
        _set_length(self.cache, done + 1)
        return self.output


def record(step: Callable[[], Any], device: torch.device) -> tuple[Any, Any]:
    """Return a graph of what `step` does, and what it returned: tensors that each replay writes anew."""
    stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    graph = torch.cuda.CUDAGraph()
    collects = gc.isenabled()
    gc.disable()  # which could end an older graph in the midst
    try:
        with torch.cuda.stream(stream):
            step()  # loads kernels and makes their workspaces, which no graph may
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                output = step()
            finally:
                graph.capture_end()
    finally:
        if collects:
            gc.enable()
    current.wait_stream(stream)
    return graph, output


@contextmanager
def _fixed_places(cache: Any, place: Tensor, width: int) -> Iterator[None]:
    for layer in cache.layers:
        layer.fixed = (place, width)
    try:
        yield
    finally:
        for layer in cache.layers:
            layer.fixed = None


@contextmanager
def _casts_not_kept() -> Iterator[None]:
    """Autocast would keep what it cast, and a cast made while a graph is recorded has no values until it is replayed."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def _set_length(cache: Any, length: int) -> None:
    for layer in cache.layers:
        layer.set_length(length)
