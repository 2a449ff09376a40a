"""Faster kernels for the blocks of a transformers model: torch.compile, and Liger's."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from hf_rlhf.errors import InputError
from hf_rlhf.models.batch_layout import backbone_of
from hf_rlhf.types import Model


def compile_blocks(model: Model, backend: str | None, mode: str | None) -> None:
    """Compile the repeated blocks of a transformers model in place: one compilation serves all, and names stay."""
    for blocks in backbone_of(model).modules():
        if isinstance(blocks, nn.ModuleList) and len(blocks) > 1 and len({type(block) for block in blocks}) == 1:
            for block in blocks:
                block.compile(backend=backend or "inductor", mode=mode, dynamic=True)


def use_liger_kernels(model: Model, device: torch.device, kernels: dict[str, bool] | None) -> None:
    """Let a transformers model compute norms, rotations and MLPs by Liger's Triton kernels.

    `kernels` chooses among them.
    """
    if device.type == "cpu":
        raise InputError(
            "use_liger_kernel=true is invalid without a GPU: Liger's kernels are written in Triton. Omit it"
        )
    from transformers.integrations.liger import apply_liger_kernel

    apply_liger_kernel(model, kernels)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled blocks as they are written: for sampling, where the cache has another length at every step."""
    with torch.compiler.set_stance("force_eager"):
        yield
