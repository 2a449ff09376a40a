"""A decoding step as a CUDA graph: its thousand kernels are launched one by one once, and by one call from then on.

On a GPU a step of a small batch takes longer to launch than to compute. What is replayed must have fixed shapes and
places: keys and values are written at an index that lies on the device, and attention looks at all the room there is,
of which the attention mask hides the part that is not filled yet.
"""

import functools
import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hf_rlhf.errors import InputError
from hf_rlhf.models.fast.attention import FUSED
from hf_rlhf.models.fast.cache import CACHE_NAMES, RoomyLayer
from hf_rlhf.types import Model

logger = logging.getLogger(__name__)

_WIDTH = 256  # tokens of room by which what a graph looks at grows; then it is recorded anew
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_KNOWN = {
    "input_ids",
    "position_ids",
    "attention_mask",
    *CACHE_NAMES,
    "logits_to_keep",
    "use_cache",
    "return_dict",
}
_TOLERANCE = {torch.float32: 0.01}  # of the probability that lies elsewhere, see `_require_the_same`
_TOLERANCE_HALF = (
    0.25  # in bfloat16 and float16: two kernels for one product differ, and logits of 20 have steps of 0.125
)


class GraphsDiffer(RuntimeError):
    """A difference between a replayed step and the model's own."""


class GraphedSteps:
    """Decoding steps of one model by CUDA graphs, or without them where the model's code cannot be recorded.

    Some steps are also computed the plain way and compared: the 1st, 2nd, 4th, 8th and so on of all, and the first of
    each width. A difference ends the use of graphs, as does a step that cannot be recorded: `reason` says why.

    Attributes:
        reason: why graphs are not used; None while they are.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._steps = 0
        self._next_comparison = 1
        self._widths: set[int] = set()  # that were compared
        self._stream: Any = None  # one for all, since cuBLAS keeps a workspace for each

    @contextmanager
    def replace_forward(self, causal_lm: Model, cache: Any) -> Iterator["Steps | None"]:
        """Let `causal_lm` take its single-token steps by replaying a graph; `cache` is the one that it is given."""
        if self.reason is None:
            self.reason = why_not(causal_lm, cache) if _records(causal_lm.device) else "no CUDA device"
        if self.reason is not None:
            yield None
            return
        before = vars(causal_lm).get("forward")  # where somebody has replaced the class's own
        forward = causal_lm.forward
        steps = Steps(self, forward, cache)

        @functools.wraps(forward)  # generate looks at the names of its arguments
        def replayed(*args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs) if args or not steps.has(kwargs) else steps(kwargs)

        causal_lm.forward = replayed
        try:
            yield steps
        finally:
            if before is None:
                del causal_lm.forward
            else:
                causal_lm.forward = before

    def record(self, step: Callable[[], Any], device: torch.device) -> tuple[Any, Any]:
        """Like the function `record`, on this object's stream."""
        if self._stream is None and device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
        return record(step, self._stream)

    def compare_now(self, width: int) -> bool:
        """Return whether this step is one to compare; `width` is that of the graph that takes it."""
        self._steps += 1
        if width in self._widths and self._steps < self._next_comparison:
            return False
        self._widths.add(width)
        while self._next_comparison <= self._steps:
            self._next_comparison *= 2
        return True


def why_not(causal_lm: Model, cache: Any) -> str | None:
    """Return why this model's steps cannot be recorded, as far as known without trying; None if they may be."""
    if getattr(causal_lm, "is_quantized", False):
        return "a quantized base"
    if cache is None or any(type(layer) is not RoomyLayer for layer in cache.layers):
        return "this architecture keeps something else than the keys and values of all tokens"
    if hasattr(causal_lm, "_hf_hook"):
        return "accelerate moves its tensors between devices"
    config = causal_lm.config.get_text_config(decoder=True)
    if config._attn_implementation != FUSED:
        return f"its attention is {config._attn_implementation}, not {FUSED}"
    if any(getattr(config, name, None) for name in _EXPERTS):
        return "the CPU counts the tokens of each expert"
    rotations = str(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None))
    if "dynamic" in rotations or "longrope" in rotations:
        return "its rotations depend on the length"
    return None


def _records(device: torch.device) -> bool:
    return device.type == "cuda"


class Steps:
    """The steps of one batch: recorded for so many rows and so much room, and recorded anew when either changes."""

    def __init__(self, owner: GraphedSteps, forward: Callable[..., Any], cache: Any):
        self.owner, self.forward, self.cache = owner, forward, cache
        self.recorded: _Recorded | None = None

    def has(self, kwargs: dict[str, Any]) -> bool:
        """Return whether the call is a step of one token; arguments that are not known here end the use of graphs."""
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if self.owner.reason is not None or not isinstance(ids, Tensor) or ids.shape[1] != 1:
            return False
        known = (
            kwargs.keys() <= _KNOWN
            and isinstance(kwargs.get("position_ids"), Tensor)
            and any(kwargs.get(name) is self.cache for name in CACHE_NAMES)
            and isinstance(mask, Tensor)
            and mask.dim() == 2
            and mask.shape[1] > 1
        )
        if not known and isinstance(mask, Tensor) and mask.shape[1] > 1:
            self.end(f"its steps take other arguments ({', '.join(sorted(kwargs))})")
        return known

    def end(self, reason: str) -> None:
        """Stop using graphs."""
        self.owner.reason = reason
        logger.warning("sampling falls back to steps without CUDA graphs, which is slower but equal: %s", reason)

    def forget(self) -> None:
        """Free the graph and the room that it writes to, before other rows get room."""
        self.recorded = None

    def __call__(self, kwargs: dict[str, Any]) -> Any:
        """Take one step: by a graph if it can be recorded, else by the model. Some steps take both, to compare them."""
        done = self.cache.get_seq_length()
        if self.recorded is not None and not self.recorded.serves(self.cache, done):
            self.forget()
        plain = None
        width = min(self.cache.layers[0].longest, (done // _WIDTH + 1) * _WIDTH)
        if self.owner.compare_now(width):
            plain = self.forward(**kwargs).logits.clone()
            _set_length(self.cache, done)
        if self.recorded is None and not self._record(kwargs, done, width):
            return self.forward(**kwargs)
        assert self.recorded is not None
        output = self.recorded.replay(kwargs, done)
        if plain is not None:
            self._require_the_same(output.logits, plain)
        return output

    def _record(self, kwargs: dict[str, Any], done: int, width: int) -> bool:
        """Record the step; return False where this step must run without a graph."""
        try:
            self.recorded = _Recorded(self.owner, self.forward, self.cache, kwargs, done, width)
            return True
        except torch.OutOfMemoryError:  # the next one may find room
            _set_length(self.cache, done)
            return False
        except Exception as error:  # whatever code of models and torch raises where it cannot be recorded
            _set_length(self.cache, done)
            self.end(f"its code cannot be recorded ({type(error).__name__}: {str(error)[:120]})")
            if _torch_stays_recording():
                raise InputError(
                    f"use_cuda_graphs=true is invalid for this model with torch {torch.__version__}:"
                    f" {self.owner.reason}. Set it to false"
                ) from error
            return False

    def _require_the_same(self, logits: Tensor, plain: Tensor) -> None:
        """Compare two distributions of each row by the probability that lies elsewhere (total variation)."""
        moved = (logits[:, -1].float().softmax(-1) - plain[:, -1].float().softmax(-1)).abs().sum(-1).max().item() / 2
        if not moved <= _TOLERANCE.get(plain.dtype, _TOLERANCE_HALF) and not plain.isnan().any():
            self.owner.reason = f"a replayed step moved {moved:.2f} of a token's probability"
            raise GraphsDiffer(self.owner.reason)


class _Recorded:
    """A graph and the tensors that it reads and writes."""

    def __init__(
        self,
        owner: GraphedSteps,
        forward: Callable[..., Any],
        cache: Any,
        kwargs: dict[str, Any],
        done: int,
        width: int,
    ):
        self.rooms = [layer.make_room(clean=True) for layer in cache.layers]
        self.cache, self.width = cache, width
        mask = kwargs["attention_mask"]
        self.ids, self.positions = kwargs["input_ids"].clone(), kwargs["position_ids"].clone()
        self.mask = mask.new_zeros(len(mask), self.width)
        self.mask[:, : mask.shape[1]] = mask
        self.place = torch.tensor([done], device=mask.device)
        fixed = {**kwargs, "input_ids": self.ids, "position_ids": self.positions, "attention_mask": self.mask}

        def step() -> Any:
            with _fixed_places(cache, self.place, self.width), _casts_not_kept():
                return forward(**fixed)

        self.graph, self.output = owner.record(step, mask.device)

    def serves(self, cache: Any, done: int) -> bool:
        """Return whether it was recorded for these rows, and has room for one more token."""
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


def record(step: Callable[[], Any], stream: Any) -> tuple[Any, Any]:
    """Return a graph of what `step` does on a stream, and what it returned: tensors that each replay writes anew."""
    torch.cuda.synchronize(stream.device)
    torch.cuda.empty_cache()  # of deleted graphs, among others: nothing is given back while a graph is recorded
    current = torch.cuda.current_stream(stream.device)
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
        current.wait_stream(stream)
        if collects:
            gc.enable()
    return graph, output


def _torch_stays_recording() -> bool:
    """Return whether a recording that failed leaves torch's memory in the state of one, as it can before 2.12."""
    return tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) < (2, 12)


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
    """Let autocast keep nothing: a cast that is made while a graph is recorded has no values until it is replayed."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def _set_length(cache: Any, length: int) -> None:
    for layer in cache.layers:
        layer.set_length(length)
