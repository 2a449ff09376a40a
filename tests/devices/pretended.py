"""A pretended accelerator: every number is computed on the CPU, and an operation on two devices is an error.

Inside `pretended_accelerator()`, what `.to("cuda")`, `.cuda()` and `device="cuda"` make says that it is on `cuda:0`,
and so does everything computed from it. Storages carry the mark, so that views and gradients have it too.
"""

from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import accelerate
import torch
import transformers
from torch import Tensor
from torch._C import TensorBase
from torch.autograd.graph import _engine_run_backward
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU, ACCELERATOR = torch.device("cpu"), torch.device("cuda", 0)
_aten = torch.ops.aten
_ACROSS_DEVICES = {_aten.copy_, _aten._foreach_copy_, _aten._to_copy, _aten._local_scalar_dense}
_INDEXING = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}
_TAKES_CPU_SCALARS = {
    _aten.where,
    _aten.masked_fill,
    _aten.masked_fill_,
    _aten.fill,
    _aten.fill_,
}  # beside pointwise ones
_SIZE_BY_DATA = {_aten.nonzero, _aten.masked_select, _aten._local_scalar_dense}  # for which a GPU has to be waited for


class DevicesMet(Exception):
    """Stand-in for CUDA's error about tensors of two devices.

    It is no `RuntimeError`, which code may catch in order to fall back.
    """


class Marks:
    """The storages that are on the accelerator. A weak reference keeps an address from being used again."""

    def __init__(self):
        self._storages: dict[int, StorageWeakRef] = {}

    def device_of(self, tensor: Tensor) -> torch.device:
        if (real := TensorBase.device.__get__(tensor)).type != "cpu":
            return real
        return ACCELERATOR if tensor.untyped_storage()._cdata in self._storages else CPU

    def set(self, tensor: Tensor, device: torch.device) -> None:
        storage = tensor.untyped_storage()
        if device == CPU:
            self._storages.pop(storage._cdata, None)
        elif storage._cdata not in self._storages:
            self._storages[storage._cdata] = StorageWeakRef(storage)
            if len(self._storages) % 4096 == 0:
                self._storages = {key: held for key, held in self._storages.items() if not held.expired()}

    def moved(self, tensor: Tensor, device: torch.device) -> Tensor:
        """`tensor` itself where it is on `device`, else a copy there, through which gradients flow."""
        if self.device_of(tensor) == device:
            return tensor
        return _Move.apply(tensor, self, device)


class _Move(torch.autograd.Function):
    """A copy on another device; the gradient goes back to the device that the tensor came from."""

    @staticmethod
    def forward(ctx, tensor: Tensor, marks: Marks, device: torch.device) -> Tensor:
        ctx.marks, ctx.origin = marks, marks.device_of(tensor)
        copy = tensor.clone()
        marks.set(copy, device)
        return copy

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return ctx.marks.moved(gradient, ctx.origin), None, None


class _Operations(TorchDispatchMode):
    """Look at each operation's tensors, of forward and backward passes alike, and mark what comes out."""

    def __init__(self, marks: Marks, counts: Counter):
        super().__init__()
        self.marks = marks
        self.counts = counts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func.overloadpacket
        device = self._device(func, packet, args, kwargs)
        out = func(*args, **kwargs)
        if device == ACCELERATOR:
            self.counts[packet.__name__] += 1
            self.counts["waits"] += packet in _SIZE_BY_DATA
            if not any(result.alias_info is not None for result in func._schema.returns):
                for tensor in _tensors(out):
                    self.marks.set(tensor, device)
        return out

    def _device(self, func, packet, args, kwargs) -> torch.device:
        """Return the device that an operation computes on; raises `DevicesMet`."""
        tensors = _tensors((args, kwargs))
        devices = [self.marks.device_of(tensor) for tensor in tensors]
        if ACCELERATOR not in devices:
            return CPU
        if packet in _ACROSS_DEVICES:
            return devices[0]
        if packet in _INDEXING:
            return self._of_indexing(func, args)
        if CPU in devices:
            scalars = torch.Tag.pointwise in func.tags or packet in _TAKES_CPU_SCALARS or "_foreach" in packet.__name__
            written = {id(each) for each in _written(func, args, kwargs)}
            for tensor, device in zip(tensors, devices, strict=True):
                if device == CPU and not (scalars and tensor.dim() == 0 and id(tensor) not in written):
                    raise DevicesMet(_message(func, tensors, devices))
        return ACCELERATOR

    def _of_indexing(self, func, args) -> torch.device:
        """Indices may be on the CPU. Of what is written, a single number may be."""
        own, indices, values = args[0], _tensors(args[1]), _tensors(args[2:3])
        device = self.marks.device_of(own)
        for tensor in indices + values:
            other = self.marks.device_of(tensor)
            allowed = other == CPU if any(tensor is index for index in indices) else tensor.dim() == 0
            if other != device and not allowed:
                raise DevicesMet(_message(func, [own, tensor], [device, other]))
        return device


class _Functions(TorchFunctionMode):
    """Do `.to`, `.cuda`, `.cpu`, `device=` and `.device` as if there was an accelerator."""

    def __init__(self, marks: Marks, counts: Counter):
        super().__init__()
        self.marks = marks
        self.counts = counts

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func is Tensor.backward:
            return self._backward(args[0])
        if func in {Tensor.to, Tensor.cuda, Tensor.cpu}:
            return self._to(func, args, kwargs)
        if name in {"numpy", "__array__"} and self.marks.device_of(args[0]) == ACCELERATOR:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if func is Tensor.__deepcopy__ or name in {"as_tensor", "asarray"}:
            return self._copied(func, args, kwargs)
        if func is Tensor.tolist:
            self.counts["waits"] += self.marks.device_of(args[0]) == ACCELERATOR
        wanted = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        if wanted is None or wanted.type == "meta":
            out = func(*args, **kwargs)
            if func is Tensor.new_tensor:
                self.marks.set(out, self.marks.device_of(args[0]))
            return out
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != wanted.type:
            raise DevicesMet(f"{name}: a generator on {generator.device} draws for {wanted}")
        out = func(*args, **kwargs | {"device": CPU})
        for tensor in _tensors(out):
            self.marks.set(tensor, _known(wanted))
        return out

    def _backward(self, loss: Tensor) -> None:
        """Keep this mode on for what is computed again.

        `torch.autograd.backward` would hand it to this mode once more.
        """
        ones, keeps, inputs = torch.ones_like(loss), False, ()
        with self:
            _engine_run_backward((loss,), (ones,), keeps, keeps, inputs, allow_unreachable=True, accumulate_grad=True)

    def _to(self, func, args, kwargs) -> Tensor:
        tensor, *rest = args
        if func is not Tensor.to:
            return self._moved(tensor, ACCELERATOR if func is Tensor.cuda else CPU)
        if other := _tensors((rest, kwargs)):
            device, dtype = self.marks.device_of(other[0]), other[0].dtype
        else:
            named = {name: value for name, value in kwargs.items() if name != "copy"}
            device, dtype, *_ = torch._C._nn._parse_to(*rest, **named)
        if device is not None and device.type == "meta":
            return func(*args, **kwargs)
        there = tensor if device is None else self._moved(tensor, _known(device))
        return there.to(dtype or there.dtype, copy=kwargs.get("copy", False) and there is tensor)

    def _moved(self, tensor: Tensor, device: torch.device) -> Tensor:
        self.counts["waits"] += device == CPU and self.marks.device_of(tensor) == ACCELERATOR
        return self.marks.moved(tensor, device)

    def _copied(self, func, args, kwargs) -> Any:
        """Cover functions that copy without an operation.

        `copy.deepcopy` copies a storage without one; `as_tensor` and `asarray` may hand back what they got.
        """
        device, source = kwargs.pop("device", None), args[0]
        out = func(*args, **kwargs)
        if isinstance(source, Tensor):
            self.marks.set(out, self.marks.device_of(source))
        return out if device is None else self.marks.moved(out, _known(torch.device(device)))


@contextmanager
def trainers_on_accelerator():
    """Enter `pretended_accelerator`, and let trainers compute on it."""
    of_arguments = property(lambda arguments: arguments._setup_devices and ACCELERATOR)
    with (
        mock.patch.object(transformers.TrainingArguments, "device", of_arguments),
        mock.patch.object(accelerate.Accelerator, "device", ACCELERATOR),
        pretended_accelerator() as counts,
    ):
        yield counts


@contextmanager
def pretended_accelerator():
    """Pretend that `cuda` is there; yield the counts of operations on it.

    The count `waits` is that of Python's waits for its results.
    """
    marks, counts = Marks(), Counter()
    attributes = {
        "device": marks.device_of,
        "is_cuda": lambda tensor: marks.device_of(tensor) == ACCELERATOR,
        "is_cpu": lambda tensor: marks.device_of(tensor) == CPU,
    }
    with ExitStack() as stack:
        for (
            name,
            getter,
        ) in attributes.items():  # of the class, since a mode is off inside the operations that it handles
            stack.enter_context(mock.patch.object(Tensor, name, property(getter), create=True))
        for name, answer in (("get_device_capability", (7, 0)), ("get_device_name", "pretended")):  # 7: no bf16
            stack.enter_context(mock.patch.object(torch.cuda, name, lambda *_, answer=answer: answer))
        stack.enter_context(_pretended_autocast(counts))
        stack.enter_context(_Functions(marks, counts))
        stack.enter_context(_Operations(marks, counts))
        yield counts


@contextmanager
def _pretended_autocast(counts: Counter):
    """Let autocast of the accelerator be that of the CPU, and count by device which one code asks for."""

    class Autocast(torch.autocast):
        def __init__(self, device_type: str, *args, **kwargs):
            counts[f"autocast on {device_type}"] += 1
            super().__init__("cpu", *args, **kwargs)

    enabled, dtype = partial(torch.is_autocast_enabled, "cpu"), partial(torch.get_autocast_dtype, "cpu")
    with (
        mock.patch.object(torch, "autocast", Autocast),
        mock.patch.object(torch, "is_autocast_enabled", side_effect=lambda *_: enabled()),
        mock.patch.object(torch, "get_autocast_dtype", side_effect=lambda *_: dtype()),
    ):
        yield


def _known(device: torch.device) -> torch.device:
    assert device.type in {"cpu", "cuda"}, device
    return CPU if device.type == "cpu" else ACCELERATOR


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _written(func, args, kwargs) -> list[Tensor]:
    """The tensors that an operation writes to."""
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    names = [each.name for each in func._schema.arguments if each.alias_info is not None and each.alias_info.is_write]
    return _tensors([given.get(name) for name in names])


def _message(func, tensors, devices) -> str:
    found = ", ".join(f"{tuple(tensor.shape)} on {device}" for tensor, device in zip(tensors, devices, strict=True))
    return f"{func}: expected all tensors to be on the same device, but found {found}"
