"""Full fine-tuning: which weights of a model are trained."""

from hf_rlhf.errors import InputError
from hf_rlhf.models.fast.trunk import block_list, train_last_blocks
from hf_rlhf.models.load import require_full_training
from hf_rlhf.types import Model


def train_weights(model: Model, source: str, num_layers_unfrozen: int | None = None) -> Model:
    """Make a model trainable without an adapter; returns it.

    With `num_layers_unfrozen` its last blocks are trained, see `train_last_blocks`. Otherwise a model whose last block
    is trained keeps frozen what came frozen, and all weights of any other are trained: PEFT's merge leaves all but a
    few frozen. `source` names the model in errors.
    """
    require_full_training(model, source)
    if num_layers_unfrozen is not None:
        train_last_blocks(model, num_layers_unfrozen, source)
    elif not _trains_last_block(model):
        model.requires_grad_(True)
    return model


def require_no_adapter(num_layers_unfrozen: int | None, *, has_adapter: bool) -> None:
    """Raise `InputError` for blocks to unfreeze in a policy that trains an adapter."""
    if num_layers_unfrozen is not None and has_adapter:
        raise InputError(
            f"num_layers_unfrozen={num_layers_unfrozen} is invalid with LoRA: it is for full fine-tuning"
            " (use_peft=false, no peft_config). For LoRA on the last blocks alone, set"
            f" lora_layers={num_layers_unfrozen}, or layers_to_transform of the peft_config"
        )


def _trains_last_block(model: Model) -> bool:
    found = block_list(model)
    return found is not None and all(parameter.requires_grad for parameter in found[1][-1].parameters())
