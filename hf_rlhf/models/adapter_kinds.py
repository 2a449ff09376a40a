"""The PEFT adapters that PPO can train: those that leave the base unchanged, since the base alone is the reference."""

from typing import Any

from hf_rlhf.errors import InputError

SUPPORTED = ("LORA", "LOHA", "LOKR", "OFT", "BOFT", "IA3", "VERA", "MISS", "TRAINABLE_TOKENS")
_WEIGHTS_THAT_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def require_trainable_adapter(config: Any) -> None:
    """Raise `InputError` unless a policy can be trained as an adapter of this PEFT config.

    The frozen base with its adapters off is the reference, so the adapter must not change it: neither by training some
    of its weights (`bias`) nor by how it starts (`init_lora_weights`).
    """
    peft_type = getattr(config.peft_type, "value", config.peft_type)
    supported = f"Use LoRA (also with use_dora or use_rslora), or one of {', '.join(SUPPORTED[1:])}."
    if config.is_prompt_learning:
        raise InputError(f"peft_type={peft_type} is invalid: it changes the prompt and not the weights. {supported}")
    if peft_type == "ADALORA":
        raise InputError(
            "peft_type=ADALORA is invalid: it changes its ranks in calls of update_and_allocate, which PPO does not"
            f" make. {supported}"
        )
    if peft_type not in SUPPORTED:
        raise InputError(f"peft_type={peft_type} is invalid: it has not been tried with PPO. {supported}")
    if (bias := getattr(config, "bias", "none")) not in ("none", False):
        raise InputError(
            f"bias={bias!r} is invalid: it trains biases of the base, which the reference shares, so the KL would be"
            " wrong. Set it to 'none'."
        )
    start = str(getattr(config, "init_lora_weights", True)).lower()
    if start.startswith(_WEIGHTS_THAT_CHANGE_THE_BASE):
        raise InputError(
            f"init_lora_weights={start!r} is invalid: it changes the weights of the base, which the reference shares."
            " Set it to True or 'gaussian'. PEFT turns such an adapter into plain LoRA: save_pretrained(...,"
            " path_initial_model_for_weight_conversion=...)."
        )
