"""Models with an adapter: every load of one uses this module.

`from_pretrained` of transformers also accepts the folder of an adapter. It injects the adapter into the base, and the
next adapter replaces it without notice. Here the adapter is a `PeftModel` on its base, with the embeddings that it was
trained with.
"""

import copy
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapter_files import (
    ADAPTER_FILE,
    adapter_base,
    adapter_folder,
    adapter_task,
    base_revision,
    read_adapter_weights,
)
from hf_rlhf.models.adapters import base_of, require_adapter_weights
from hf_rlhf.models.load import (
    load_causal_lm,
    load_sequence_classifier,
    require_full_training,
    require_safetensors,
)
from hf_rlhf.models.precision import NATIVE
from hf_rlhf.models.vocabulary import fit_vocabulary
from hf_rlhf.types import Model

SCORE_HEADS = ("score", "classifier")


def load_policy(
    name_or_path: str,
    *,
    adds_adapter: bool,
    merges_adapter: bool = False,
    dtype: str | torch.dtype = NATIVE,
    trainable: bool = False,
    **kwargs: Any,
):
    """Load a policy like `load_causal_lm`; the folder or Hub name of an adapter gives a `PeftModel` on its base.

    Args:
        name_or_path: where the policy starts.
        adds_adapter: whether a model that has no adapter will get a fresh one. One without is trained as a whole, and
            loaded in fp32: an update to a bf16 weight is mostly lost to rounding.
        merges_adapter: merge the adapter of `name_or_path` into its base, which is then trained as a whole, in fp32.
        dtype: of a frozen base.
        trainable: whether the adapter takes gradients; PPO makes a copy that does.
    """
    folder = adapter_folder(name_or_path)
    if adapter_base(folder) is None:
        return _started(load_causal_lm, folder, adds_adapter, dtype, **kwargs)
    if adapter_task(folder) == "SEQ_CLS":
        raise InputError(
            f"{name_or_path!r} is the adapter of a reward model, and a policy starts from a language model.\n"
            "Give a base, or the adapter that `hf-rlhf sft` or ppo saved; a reward model belongs to the rewards."
        )
    dtype = torch.float32 if merges_adapter else dtype
    model = load_adapted(load_causal_lm, folder, dtype=dtype, trainable=trainable, **kwargs)
    return _merged(model, folder) if merges_adapter else model


def load_reward_start(
    name_or_path: str,
    *,
    adds_adapter: bool,
    merges_adapter: bool = False,
    dtype: str | torch.dtype = NATIVE,
    **kwargs: Any,
) -> Model:
    """Load what the training of a reward model starts from: a sequence classifier with one label.

    The folder or Hub name of an adapter gives that adapter on its base, to be trained further: a reward model's with
    its score head, a language model's with a fresh one. The other arguments are those of `load_policy`.
    """
    folder = adapter_folder(name_or_path)
    if adapter_base(folder) is None:
        return _started(load_sequence_classifier, folder, adds_adapter, dtype, **kwargs)
    model = load_adapted_classifier(folder, dtype=torch.float32 if merges_adapter else dtype, **kwargs)
    return _merged(model, folder) if merges_adapter else model


def load_base(load: Callable[..., Model], folder: str | os.PathLike, **kwargs: Any) -> Model:
    """Load the base of the adapter in `folder`, with the embeddings of its training (`fit_vocabulary`).

    `load` is `load_causal_lm` or `load_sequence_classifier`, and `kwargs` are for it.
    """
    if (revision := base_revision(folder)) is not None:
        kwargs["revision"] = revision
    base = load(adapter_base(folder), **kwargs)
    fit_vocabulary(base, folder, trust_remote_code=kwargs.get("trust_remote_code", False))
    return base


def load_adapted(
    load: Callable[..., Model],
    folder: str | os.PathLike,
    *,
    adapter_name: str = "default",
    trainable: bool = False,
    **kwargs: Any,
) -> Model:
    """Load the adapter in `folder` as a `PeftModel` on its base; `load` and `kwargs` are those of `load_base`."""
    from peft import PeftModel

    from hf_rlhf.models.trained_tokens import mend_trained_tokens

    require_safetensors(str(folder))
    base = load_base(load, folder, **kwargs)
    model = PeftModel.from_pretrained(base, str(folder), adapter_name=adapter_name, is_trainable=trainable)
    mend_trained_tokens(model)
    return model


def load_adapted_classifier(folder: str | os.PathLike, *, adapter_name: str = "default", **kwargs: Any) -> Model:
    """Like `load_adapted`, but trainable and as a sequence classifier, even for a language model's adapter.

    Such an adapter gets a fresh score head; what it has for the language-model head is omitted. Raises `InputError`
    for a reward adapter without its score head, or with more than one label.
    """
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    from hf_rlhf.models.trained_tokens import mend_trained_tokens

    weights = read_adapter_weights(folder)
    config = PeftConfig.from_pretrained(str(folder))
    is_reward_model = adapter_task(folder) == "SEQ_CLS"
    if is_reward_model:
        require_saved_head(folder)
    base = load_base(load_sequence_classifier, folder, **kwargs)
    classifier = get_peft_model(base, as_classifier(config, base), adapter_name=adapter_name)
    own = get_peft_model_state_dict(classifier, adapter_name=adapter_name, save_embedding_layers=False)
    if not is_reward_model:
        weights |= {key: tensor for key, tensor in own.items() if _is_of_head(key)}
    require_adapter_weights(folder, adapter_name, own, weights)
    set_peft_model_state_dict(classifier, weights, adapter_name=adapter_name)
    mend_trained_tokens(classifier)
    return classifier


def as_classifier(config: Any, classifier: Model) -> Any:
    """Return a copy of an adapter's config that trains it on a sequence classifier, together with the score head."""
    modules = [name for name, _ in classifier.named_modules()]

    def there(name: str) -> bool:
        return any(module == name or module.endswith(f".{name}") for module in modules)

    config = copy.deepcopy(config)
    config.task_type = "SEQ_CLS"
    config.inference_mode = False
    config.modules_to_save = sorted({*filter(there, config.modules_to_save or ()), head_name(classifier)})
    if isinstance(getattr(config, "trainable_token_indices", None), dict):
        indices = config.trainable_token_indices
        config.trainable_token_indices = {name: rows for name, rows in indices.items() if there(name)} or None
    return config


def head_name(classifier: Model) -> str:
    """Return the name of a sequence classifier's last layer. Raises `InputError` when it has none that is known."""
    for name in SCORE_HEADS:
        if isinstance(getattr(classifier, name, None), nn.Module):
            return name
    raise InputError(
        f"{type(classifier).__name__} cannot be a reward model: it has no head named score or classifier. Give another"
        " architecture."
    )


def require_saved_head(folder: str | os.PathLike) -> dict[str, Tensor]:
    """Return what a reward adapter's file holds of its head.

    Raises `InputError` when it was not saved, or has several labels.
    """
    head = {key: tensor for key, tensor in read_adapter_weights(folder).items() if _is_of_head(key)}
    lasts = [
        tensor for key, tensor in head.items() if key.endswith(("score.weight", "classifier.weight", "out_proj.weight"))
    ]
    if len(lasts) != 1:
        raise InputError(
            f"reward adapter {str(folder)!r} has no trained score head in {ADAPTER_FILE}\n"
            'Train it with `hf-rlhf reward`, or with modules_to_save=["score"] in its LoraConfig.'
        )
    if len(lasts[0]) != 1:
        raise InputError(
            f"reward adapter {str(folder)!r} is invalid: it has {len(lasts[0])} labels. Give one with num_labels=1."
        )
    return head


def _is_of_head(key: str) -> bool:
    return key.removeprefix("base_model.model.").split(".")[0] in SCORE_HEADS


def _started(
    load: Callable[..., Model], name: str, adds_adapter: bool, dtype: str | torch.dtype, **kwargs: Any
) -> Model:
    """Load a model without an adapter; it gets one later, or (`adds_adapter=False`) it is trained as a whole."""
    model = load(name, dtype=dtype if adds_adapter else torch.float32, **kwargs)
    if not adds_adapter:
        require_full_training(model, "the model")
    return model


def _merged(model: Model, folder: str) -> Model:
    """Merge the adapter into its base, which is then trained as a whole."""
    require_full_training(base_of(model), f"the base of {folder!r}")
    if model.active_peft_config.is_prompt_learning:
        raise InputError(
            f"use_peft=false is invalid: the adapter {folder!r} changes the prompt, not the weights, and cannot be"
            " merged into its base. Omit use_peft, or start from the base."
        )
    _untie_adapted_ends(base_of(model))
    merged = model.merge_and_unload().requires_grad_(True)
    merged.config._name_or_path = folder  # by the base's name, others would load the base
    return merged


def _untie_adapted_ends(base: Model) -> None:
    """Give the head its own weight where an adapter's layer changes it, or the embeddings, and both are one tensor.

    Such a layer changes one end alone; merged into the shared tensor, it would change the other end too.
    """
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    if head is None:
        return
    kinds = [{type(part) for part in end.modules() if isinstance(part, BaseTunerLayer)} for end in (embeddings, head)]
    if kinds[0] | kinds[1] <= {TrainableTokensLayer}:  # trained rows are those of both ends already
        return
    if any(TrainableTokensLayer in each and len(each) > 1 for each in kinds):
        raise InputError(
            "use_peft=false is invalid: the adapter changes the head twice, by a layer of its own and by"
            " trainable_token_indices of the embeddings tied to it, and PEFT cannot merge both. Omit use_peft, or"
            " start from the base."
        )
    shared = {part._parameters.get("weight") for part in embeddings.modules()} - {None}
    for part in head.modules():
        if (weight := part._parameters.get("weight")) in shared:
            part._parameters["weight"] = nn.Parameter(weight.detach().clone())
            base.config.tie_word_embeddings = base.config.get_text_config().tie_word_embeddings = False
