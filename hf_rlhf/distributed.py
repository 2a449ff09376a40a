"""Every collective of the package, and every way in which ranks decide together."""

from typing import Any, TypeVar

import torch
from torch import Tensor

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


def close() -> None:
    """End the process group, if there is one: left open, it can abort the interpreter's exit."""
    if _distributed():
        torch.distributed.destroy_process_group()


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
