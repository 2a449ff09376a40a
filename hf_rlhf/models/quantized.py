"""4-bit weights of bitsandbytes on a CPU."""

from torch import nn

from hf_rlhf.errors import InputError


def keep_4bit_layout(model: nn.Module) -> None:
    """Keep bitsandbytes from rewriting 4-bit weights for inference.

    On a CPU with AVX512-BF16, the first forward pass in eval mode would rewrite a weight for a product that has no
    backward pass. Back in train mode it stays so: nothing below it learns, without an error, and a merge or
    `state_dict` reads wrong numbers (bitsandbytes 0.50.2, `Linear4bit.forward`).

    Raises `InputError` for weights that were rewritten before.
    """
    for name, module in model.named_modules():
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        module.support_avx512bf16_for_cpu = False  # pyright: ignore[reportArgumentType]
        if hasattr(getattr(module.weight, "quant_state", None), "original_qshape"):  # also when it was written back
            raise InputError(
                f"the 4-bit model is invalid: bitsandbytes rewrote {name} for inference, because the model computed in"
                " eval mode on this CPU before. No gradient passes such a weight. Load the model again, and give it to"
                " the trainer before you use it."
            )
