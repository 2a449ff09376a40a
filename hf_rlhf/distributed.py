"""Every collective of the package, and every way in which ranks decide together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from hf_rlhf.errors import InputError, RunFailed

T = TypeVar("T")


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return torch.distributed.get_world_size() if _distributed() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return torch.distributed.get_rank() if _distributed() else 0


def global_sum(value: Tensor) -> Tensor:
    """The sum of `value` over all ranks, on every rank."""
    if _distributed():
        value = value.clone()
        torch.distributed.all_reduce(value)
    return value


def global_max(value: Tensor) -> Tensor:
    """The largest of each number of `value` over all ranks, on every rank."""
    if _distributed():
        value = value.clone()
        torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
    return value


def gather_in_order(share: list[T]) -> list[T]:
    """Put together what `take_share` took apart: item i of the whole comes from rank i % world_size."""
    if not _distributed():
        return share
    shares: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(shares, share)
    whole: list[T] = []
    for i in range(max(map(len, shares))):
        whole.extend(rank_share[i] for rank_share in shares if i < len(rank_share))
    return whole


def take_share(whole: list[T]) -> list[T]:
    """This rank's part of `whole`: every world_size-th item."""
    return whole[rank() :: world_size()]


@contextmanager
def failing_together() -> Iterator[None]:
    """Let an exception in the block, on any rank, end the block on every rank, with what the first one said.

    The block holds no collective of its own: a rank that failed would not come to it.
    """
    try:
        yield
    except Exception as error:
        _first_failure(f"{type(error).__name__}: {error}", type(error))
        raise
    failure = _first_failure(None, None)
    if failure is not None:
        number, message, kind = failure
        if kind in (InputError, FloatingPointError, RunFailed):
            raise kind(message.partition(": ")[2])
        raise RunFailed(f"rank {number} failed: {message}")


def by_first_rank(make: Callable[[], T]) -> T:
    """What `make` gives on rank 0, on every rank; what it raises there is raised on all."""
    with failing_together():
        made = [make()] if rank() == 0 else []
    return gather_in_order(made)[0]


def _first_failure(message: str | None, kind: type | None) -> tuple[int, str, type | None] | None:
    known = kind if kind in (InputError, FloatingPointError, RunFailed) else None
    failures = gather_in_order([None if message is None else (rank(), message, known)])
    return next((failure for failure in failures if failure is not None), None)


def close() -> None:
    """End the process group, if there is one: left open, it can abort the interpreter's exit."""
    if _distributed():
        torch.distributed.destroy_process_group()


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
