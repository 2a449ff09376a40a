"""Every collective of the package, and every way in which ranks decide together."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from hf_rlhf.errors import InputError, RunFailed
from hf_rlhf.ops.masked import Moments, combine, masked_moments, masked_sum

T = TypeVar("T")


def world_size() -> int:
    """Return the number of ranks; 1 without a process group."""
    return torch.distributed.get_world_size() if _distributed() else 1


def rank() -> int:
    """Return this process's rank; 0 without a process group."""
    return torch.distributed.get_rank() if _distributed() else 0


def global_sum(value: Tensor) -> Tensor:
    """Return the sum of `value` over all ranks, on every rank."""
    return _reduced(value, torch.distributed.ReduceOp.SUM) if _distributed() else value


def global_max(value: Tensor) -> Tensor:
    """Return the elementwise maximum of `value` over all ranks, on every rank."""
    return _reduced(value, torch.distributed.ReduceOp.MAX) if _distributed() else value


def global_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Return `sum_i m_i x_i / sum_i m_i` over all ranks, a scalar. Raises ValueError where no rank counts anything.

    x: any shape, which may differ from rank to rank; mask: bool of the same shape.
    """
    total, count = global_sum(torch.stack([masked_sum(x, mask).double(), mask.sum().double()]))
    if count == 0:
        raise ValueError("mean over no counted values on any rank. Omit such batches")
    return total.to(x.dtype) / count.to(x.dtype)


def global_moments(x: Tensor, mask: Tensor) -> Moments:
    """Like `masked_moments`, but over all ranks.

    x: any shape, which may differ from rank to rank; mask: bool of the same shape.
    """
    moments = masked_moments(x, mask)
    return combine(Moments(*map(gather_rows, (part[None] for part in moments)))) if _distributed() else moments


def asked_for(variable: str) -> bool:
    """Return whether the launcher set this environment variable to true."""
    return os.environ.get(variable, "false").lower() in ("1", "true", "yes")


def require_ranks(args: Any) -> None:
    """Raise `InputError` where a launcher started several processes that would be separate runs.

    `args` are `TrainingArguments`.
    """
    on_cpus = args.use_cpu or asked_for("ACCELERATE_USE_CPU") or "DS_ACCELERATOR" in os.environ
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and not on_cpus and not torch.accelerator.is_available():
        raise InputError(
            f"the launcher started {started} processes, and no accelerator is visible. To try them on CPUs, set"
            " ACCELERATE_USE_CPU=true in the environment: they run as DDP then, whatever the launcher's file says"
        )


class Home(NamedTuple):
    """Rank that holds an item of the whole, and the item's place there."""

    rank: int
    place: int  # its number among those of that rank


def homes(sizes: Sequence[int], group: int = 1) -> list[Home]:
    """Return where each item of the whole is, in the order of `gather_in_order`, when rank r has `sizes[r]` of them."""
    return [
        Home(rank, place)
        for start in range(0, max(sizes), group)
        for rank, size in enumerate(sizes)
        for place in range(start, min(start + group, size))
    ]


def gather_in_order(share: list[T], group: int = 1) -> list[T]:
    """Put together what `take_share` divided: group i of the whole comes from rank i % world_size.

    Shares may differ in length: a rank that has no more is passed over. The items travel as pickled objects, so few and
    small ones only; `gather_rows` and `gather_numbers` are for many.
    """
    if not _distributed():
        return share
    shares: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(shares, share)
    return [shares[home.rank][home.place] for home in homes([len(each) for each in shares], group)]


def gather_rows(share: Tensor, group: int = 1) -> Tensor:
    """Like `gather_in_order`, but for a tensor's rows: `(b, ...)`, where `b` may differ by rank, to `(B, ...)`."""
    if not _distributed():
        return share
    sizes = [int(size) for size in _all_gather(torch.tensor(len(share)))]
    padded = share.new_zeros(max(sizes), *share.shape[1:])
    padded[: len(share)] = share
    shares = torch.stack(_all_gather(padded))  # (ranks, longest b, ...)
    ranks, places = torch.tensor(homes(sizes, group), dtype=torch.long).reshape(-1, 2).T
    return shares[ranks, places]


def gather_numbers(share: Sequence[float | None]) -> list[float | None]:
    """Like `gather_in_order`, but for numbers, which travel as a tensor in float64."""
    table = [(0.0, 0.0) if number is None else (float(number), 1.0) for number in share]
    whole = gather_rows(torch.tensor(table, dtype=torch.float64).reshape(-1, 2)).tolist()
    return [number if known else None for number, known in whole]


def exchange(outgoing: Sequence[Tensor], incoming: Sequence[int]) -> list[Tensor]:
    """Send bytes to each rank, and return those that each rank sent here. Every rank takes part.

    outgoing: for each rank, uint8 `(bytes,)`; incoming: how many bytes each rank sends here.
    """
    sent = _where_it_travels(torch.cat(list(outgoing)))
    received = sent.new_empty(sum(incoming))
    sizes = [len(part) for part in outgoing]
    torch.distributed.all_to_all_single(received, sent, list(incoming), sizes)
    return list(received.cpu().split(list(incoming)))


def take_share(whole: list[T], group: int = 1) -> list[T]:
    """Return this rank's part of `whole`: every world_size-th group of `group` neighbors."""
    return [item for i, item in enumerate(whole) if i // group % world_size() == rank()]


def in_step(batches: Sequence[T], empty: T) -> Iterator[T]:
    """Yield this rank's `batches`, then `empty` until every rank has had as many.

    For work in which each batch takes all ranks, as that of a model whose blocks are gathered whenever they run.
    """
    most = max(gather_in_order([len(batches)]))
    yield from batches
    yield from [empty] * (most - len(batches))


@contextmanager
def failing_together() -> Iterator[None]:
    """Raise an exception of any rank in the block on every rank, with the message of the first one.

    A rank that fails does not come to the collectives that are left in the block. So the block holds either none, or
    only those that every rank reaches: each stands in a `failing_together` of its own, with nothing before it that can
    fail on one rank alone.
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
    """Return the result of `make` on rank 0 on every rank. An exception that it raises there is raised on all."""
    with failing_together():
        made = [make()] if rank() == 0 else []
    return gather_in_order(made)[0]


def _first_failure(message: str | None, kind: type | None) -> tuple[int, str, type | None] | None:
    known = kind if kind in (InputError, FloatingPointError, RunFailed) else None
    failures = gather_in_order([None if message is None else (rank(), message, known)])
    return next((failure for failure in failures if failure is not None), None)


def _reduced(value: Tensor, op: Any) -> Tensor:
    total = _where_it_travels(value).clone()
    torch.distributed.all_reduce(total, op=op)
    return total.to(value.device)


def _all_gather(value: Tensor) -> list[Tensor]:
    """Return the tensor of each rank, all of one shape."""
    own = _where_it_travels(value).contiguous()
    parts = [torch.empty_like(own) for _ in range(world_size())]
    torch.distributed.all_gather(parts, own)
    return [part.to(value.device) for part in parts]


def _where_it_travels(value: Tensor) -> Tensor:
    """Return `value` on a device that the process group reads: gloo reads the CPU's memory, NCCL a GPU's alone."""
    if value.device.type != "cpu" or "gloo" in torch.distributed.get_backend():
        return value
    device = torch.accelerator.current_accelerator()
    assert device is not None
    return value.to(device)


def close() -> None:
    """End the process group, if there is one: an open one can abort the interpreter's exit."""
    if _distributed():
        torch.distributed.destroy_process_group()


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
