"""The machine that a run is on: its device by name, and the seconds that this takes for a matrix product."""

import functools
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

Product = tuple[int, int]
"""`(rows, width)` of a `(rows, width) x (width, width)` product."""

CPU_PRODUCTS: tuple[Product, ...] = ((64, 512), (256, 1024), (1024, 2048))
GPU_PRODUCTS: tuple[Product, ...] = ((512, 512), (2048, 2048), (8192, 8192))


def device_name(device: torch.device) -> str:
    """Return the kind of a device, and its name as far as that is known: `cpu (AMD EPYC 9R14)`."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({_processor()})" if device.type == "cpu" else device.type


def device_in_words(device: torch.device, ranks: int = 1) -> str:
    """Name the device of each of a run's ranks, with the threads of a CPU."""
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{device_name(device)}{threads}{f', {ranks} ranks' if ranks > 1 else ''}"


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [""])[0] or platform.machine()


def operations(product: Product) -> int:
    """Return the multiplications and additions of a product."""
    rows, width = product
    return 2 * rows * width * width


def product_seconds(product: Product, dtype: torch.dtype, device: torch.device | str, limit: float) -> float:
    """Return the seconds of a product in `dtype`; see `fastest`."""
    rows, width = product
    # not by random numbers, of which a run would have others after a measurement
    states, weight = (
        torch.arange(size * width, dtype=torch.float32, device=device).sin().view(size, width).to(dtype)
        for size in (rows, width)
    )
    # emulated dtypes are slower still for `states @ weight`
    return fastest(partial(torch.nn.functional.linear, states, weight), device, limit)


def fastest(function: Callable[[], Any], device: torch.device | str, limit: float, repeats: int = 7) -> float:
    """Return the seconds of the fastest of `repeats` calls, fewer when `limit` seconds have passed."""
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < limit:
        start = time.perf_counter()
        function()
        if torch.device(device).type != "cpu" and torch.accelerator.is_available():
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
