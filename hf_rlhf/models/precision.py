"""The dtype that a device multiplies natively."""

import functools
import logging
import platform
from typing import NamedTuple

import torch

from hf_rlhf.models.machine import CPU_PRODUCTS, GPU_PRODUCTS, operations, product_seconds
from hf_rlhf.types import Model

NATIVE = "native"
"""The `dtype` that stands for `native_dtype` of the device at hand."""

CLEARLY_SLOWER = 1.5
"""So many times as long as in float32, by a measurement of a moment on a machine that may be busy."""

logger = logging.getLogger(__name__)


def native_dtype(device: torch.device | str | None = None) -> torch.dtype:
    """Return bfloat16 where `device` multiplies it in hardware, and float32 elsewhere.

    A CPU without AVX512-BF16, AMX or Arm's BF16 multiplies bfloat16 4 to 35 times slower than float32; a GPU before
    compute capability 8 emulates it. Without `device`, the accelerator of this machine decides, or else its CPU.

    What the hardware says it can decides, and no measurement: results must not depend on the load of a machine.
    `Slowdown.measured` is the check.
    """
    device = torch.device(device) if device is not None else current_device()
    return torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32


def current_device() -> torch.device:
    """Return the accelerator of this machine, or else its CPU.

    A CUDA build of torch names CUDA on a machine without a GPU too, unless it is asked to look.
    """
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cpu":
        return _cpu_multiplies_bfloat16()
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    return True


def _cpu_multiplies_bfloat16() -> bool:
    # What oneDNN may use, which ONEDNN_MAX_CPU_ISA limits; on x86 it says yes where it emulates, too
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine().lower() in ("aarch64", "arm64"):
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class Slowdown(NamedTuple):
    """Time of a matrix product in bfloat16, in multiples of its time in float32."""

    times: float
    at_least: bool = False  # a larger product, which loses more by emulation, would have taken too long

    @classmethod
    @functools.cache
    def measured(cls, device: torch.device, limit: float = 0.5) -> "Slowdown":
        """Measure once per process, in about `limit` seconds; products grow as long as the time allows."""
        slowdown, speed = None, 0.0
        for product in (CPU_PRODUCTS if device.type == "cpu" else GPU_PRODUCTS)[:2]:
            if slowdown is not None and 2 * operations(product) / speed > limit:
                return slowdown._replace(at_least=True)
            full, half = (
                product_seconds(product, dtype, device, limit / 8) for dtype in (torch.float32, torch.bfloat16)
            )
            slowdown, speed = cls(half / full), operations(product) / max(full, half)
        assert slowdown is not None
        return slowdown

    @property
    def is_slower(self) -> bool:
        """True if bfloat16 is slower, by the two digits that are printed."""
        return _two_digits(self.times) > 1

    def __str__(self) -> str:
        if self.is_slower:
            return f"{'at least ' if self.at_least else ''}{_two_digits(self.times):,.10g} times as slow as float32"
        faster = _two_digits(1 / self.times)
        return f"{faster:,.10g} times as fast as float32" if faster > 1 else "as fast as float32"


def _two_digits(number: float) -> float:
    return float(f"{number:.2g}")


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype as flags have it."""
    return str(dtype).removeprefix("torch.")


def hardware_in_words(device: torch.device) -> str:
    """Describe whether `device` multiplies bfloat16 in hardware."""
    multiplies = "multiplies" if native_dtype(device) == torch.bfloat16 else "does not multiply"
    return f"this {device.type} {multiplies} bfloat16 in hardware"


def dtype_in_words(base: Model, device: torch.device) -> str:
    """Describe in which dtype a base computes on `device`, and which dtype is native there.

    A bfloat16 base is measured, see `Slowdown`.
    """
    dtype, native = base.dtype, native_dtype(device)
    name = dtype_name(dtype)
    what = name if dtype == torch.float32 else f"{name} base"
    if getattr(base, "is_quantized", False):
        what = f"{8 if getattr(base, 'is_loaded_in_8bit', False) else 4}-bit base, computing in {name}"
    rest = "" if what == "float32" else "; what is trained is float32"
    measured = f", {Slowdown.measured(device)} here" if dtype == torch.bfloat16 else ""
    is_native = "native" if dtype == native else f"native is {dtype_name(native)}"
    return f"{what} ({is_native}: {hardware_in_words(device)}{measured}){rest}"


def warn_of_slow_bfloat16(device: torch.device) -> None:
    """Warn if a bfloat16 base is slow on `device`, with the measured ratio.

    The dtype is then emulated, or the hardware is slow with it.
    """
    slowdown = Slowdown.measured(device)
    kind = device.type.upper()
    if native_dtype(device) != torch.bfloat16 and slowdown.is_slower:
        logger.warning(
            "dtype=bfloat16: this %s does not multiply bfloat16 in hardware. A matrix product in it is %s here, by a"
            " short measurement, and the run is slower by about as much. Set dtype to float32, which is native here",
            kind,
            slowdown,
        )
    elif slowdown.times > CLEARLY_SLOWER:
        logger.warning(
            "dtype=bfloat16: this %s says that it multiplies bfloat16 in hardware, but a matrix product in it is %s"
            " here, by a short measurement. The run keeps bfloat16, since a dtype is not chosen by a measurement. If"
            " the machine was not busy just now, dtype float32 is faster",
            kind,
            slowdown,
        )
