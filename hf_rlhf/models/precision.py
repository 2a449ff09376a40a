"""The dtype that a device multiplies natively."""

import platform

import torch

NATIVE = "native"
"""The `dtype` that stands for `native_dtype` of the device at hand."""


def native_dtype(device: torch.device | str | None = None) -> torch.dtype:
    """Return bfloat16 where `device` multiplies it in hardware, and float32 elsewhere.

    A CPU without AVX512-BF16, AMX or Arm's BF16 multiplies bfloat16 4 to 35 times slower than float32; a GPU before
    compute capability 8 emulates it. Without `device`, the accelerator of this machine decides, or else its CPU.
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
