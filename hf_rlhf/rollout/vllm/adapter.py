"""The policy's adapter, as a vLLM server takes it: which can be served, its folder, and its way to the server."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapter_files import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from hf_rlhf.models.adapters import POLICY, base_of, is_peft_model, save_adapter
from hf_rlhf.rollout.vllm.client import VLLMClient
from hf_rlhf.rollout.vllm.server import RUNTIME_LORA
from hf_rlhf.types import Model


def write_adapter(model: Model, folder: Path, state_dict: dict[str, Tensor] | None = None) -> str:
    """Save the policy's adapter below `folder`; return its name there, which is made of its content.

    `state_dict` holds the weights of a policy whose own are sharded.
    """
    scratch = folder / ".partial"
    save_adapter(model, POLICY, scratch, state_dict)
    digest = hashlib.blake2b(digest_size=8)
    for file in (ADAPTER_CONFIG_FILE, ADAPTER_FILE):
        digest.update((scratch / file).read_bytes())
    name = f"policy-{digest.hexdigest()}"
    if (folder / name).is_dir():
        shutil.rmtree(scratch)
    else:
        os.replace(scratch, folder / name)
    return name


def remove_adapters(folder: Path, *, but: str | None = None) -> None:
    """Remove the adapters below `folder`, `but` one: those of iterations before, also of a run that was killed."""
    for other in [path for path in folder.glob("policy-*") if path.name != but]:
        shutil.rmtree(other, ignore_errors=True)


def load_adapter(client: VLLMClient, path: Path, given_up: Callable[[], bool]) -> None:
    """Make the server load the adapter in `path`, under the name of that folder.

    Raises `ServerLost`, and `InputError` with the reason when the server refuses.
    """
    answer = client.post("/v1/load_lora_adapter", {"lora_name": path.name, "lora_path": str(path)}, given_up)
    if answer.status == 200 or "already been loaded" in answer.message:
        return
    if answer.status == 404 and "adapter" not in answer.message:
        raise InputError(f"it cannot load adapters while it runs: it was started without {RUNTIME_LORA}=True")
    if answer.status == 404:
        raise InputError(
            f"it finds no adapter in {path}; output_dir must be on a disk that the server sees under the same path"
        )
    raise InputError(f"it refused the adapter (status {answer.status}): {answer.message}")


def unload_adapter(client: VLLMClient, name: str, given_up: Callable[[], bool]) -> bool:
    """Make the server unload an adapter; return whether it had it. Raises `ServerLost`."""
    return client.post("/v1/unload_lora_adapter", {"lora_name": name}, given_up).status != 404


def require_servable_adapter(has_adapter: bool) -> None:
    """Raise `InputError` for a policy without an adapter."""
    if not has_adapter:
        raise InputError(
            "use_vllm needs a LoRA policy (use_peft, peft_config): full fine-tuning has no adapter to hand to the"
            " server"
        )


def require_servable(model: Model) -> None:
    """Raise `InputError` for a policy that a vLLM server cannot take as a LoRA adapter."""
    require_servable_adapter(is_peft_model(model))
    config = model.peft_config[POLICY]
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA":
        raise InputError(f"peft_type={kind}: a vLLM server takes LoRA adapters only. Omit use_vllm, or use LoRA")
    refused = (
        "use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "layer_replication",
        "alora_invocation_tokens", "use_qalora", "use_bdlora",
    )  # fmt: skip
    if found := [name for name in refused if getattr(config, name, None)]:
        raise InputError(f"a vLLM server cannot load an adapter with {', '.join(found)}. Omit it, or omit use_vllm")
    causal_lm = base_of(model)
    if getattr(causal_lm, "has_own_vocabulary", False):
        raise InputError(
            "a vLLM server cannot load the embeddings of tokens that an adapter adds to its base. Omit use_vllm,"
            " or save base and tokenizer after resize_token_embeddings and train on that"
        )
    from peft.tuners.tuners_utils import BaseTunerLayer

    ends = {"embeddings": causal_lm.get_input_embeddings(), "head": causal_lm.get_output_embeddings()}
    if found := [name for name, module in ends.items() if isinstance(module, BaseTunerLayer)]:
        raise InputError(
            f"a vLLM server takes no LoRA of the {' and '.join(found)}. Leave target_modules to the layers"
        )
