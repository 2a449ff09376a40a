"""A reference that is named: on the policy's base, where that is possible, or a model of its own."""

from typing import Any

from hf_rlhf.models.adapted import load_policy
from hf_rlhf.models.adapter_files import adapter_base, adapter_folder
from hf_rlhf.models.adapters import REFERENCE, base_of, is_peft_model, load_frozen_adapter
from hf_rlhf.models.same_base import same_model, stands_on
from hf_rlhf.types import Model


def named_reference(policy: Model, name_or_path: str, **kwargs: Any) -> Model | None:
    """Make a model, by path or name, the reference of `policy`, which has no adapter `reference` yet.

    The policy's base is the reference when its adapters are off, and an adapter on that base becomes `reference`: None
    is returned, and no second base is loaded. Any other reference is loaded and returned, in the dtype of the policy.

    Args:
        policy: with its adapter `policy`, or a model that is trained as a whole.
        name_or_path: of the reference.
        kwargs: for `from_pretrained`.
    """
    folder = adapter_folder(name_or_path)
    if is_peft_model(policy):
        if adapter_base(folder) is None and same_model(name_or_path, base_of(policy).config._name_or_path):
            return None
        if adapter_base(folder) is not None and stands_on(folder, policy):
            load_frozen_adapter(policy, folder, REFERENCE)
            return None
    return load_policy(name_or_path, adds_adapter=True, dtype=base_of(policy).dtype, **kwargs)
