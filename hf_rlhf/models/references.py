"""A reference that is named: on the policy's base, where that is possible, or a model of its own."""

import logging
from typing import Any

from hf_rlhf.models.adapted import load_policy
from hf_rlhf.models.adapter_files import adapter_base, adapter_folder
from hf_rlhf.models.adapters import REFERENCE, base_of, is_peft_model, load_frozen_adapter
from hf_rlhf.models.same_base import is_base_of, stands_on
from hf_rlhf.types import Model

logger = logging.getLogger(__name__)


def named_reference(policy: Model, name_or_path: str, **kwargs: Any) -> Model | None:
    """Make a model, by path or name, the reference of `policy`, which has no adapter `reference` yet.

    The policy's base is the reference when its adapters are off, and an adapter on that base becomes `reference`: None
    is returned, and no second base is loaded. Any other reference is loaded and returned, in the dtype of the policy.
    So is the model of the base's name where the base has other weights by now, as one into which an adapter was merged.

    Args:
        policy: with its adapter `policy`, or a model that is trained as a whole.
        name_or_path: of the reference.
        kwargs: for `from_pretrained`.
    """
    folder = adapter_folder(name_or_path)
    if is_peft_model(policy):
        if adapter_base(folder) is None:
            same = is_base_of(name_or_path, policy, **kwargs)
            if same is None:
                logger.warning(
                    "the reference %s is taken to be the policy's base by its name. The weights cannot be compared, as"
                    " the base is quantized, sharded, or has no files here. If you merged an adapter into it, give the"
                    " reference as a model.",
                    name_or_path,
                )
            if same is not False:
                return None
        elif stands_on(folder, policy, whole=True):
            load_frozen_adapter(policy, folder, REFERENCE)
            return None
    return load_policy(name_or_path, adds_adapter=True, dtype=base_of(policy).dtype, **kwargs)
