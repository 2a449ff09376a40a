"""A trained critic by itself: what it expects of a completion, before anything is sampled."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hf_rlhf.data.prompts import prompt_rows
from hf_rlhf.distributed import in_step
from hf_rlhf.errors import InputError
from hf_rlhf.models.adapted import load_adapted
from hf_rlhf.models.adapter_files import adapter_base
from hf_rlhf.models.adapters import CRITIC, POLICY, base_of, compute_in_base_dtype, keep_modes
from hf_rlhf.models.backbone import counted_states
from hf_rlhf.models.critics import CRITIC_FOLDER, AdapterCritic, Critic, ModelCritic, ValueHeadCritic, run_folder
from hf_rlhf.models.heads import WEIGHTS_NAME, ValueHead, saved_facts
from hf_rlhf.models.load import load_causal_lm, load_sequence_classifier, load_tokenizer
from hf_rlhf.types import Model, Prompt, Sequences


class ValueModel:
    """A critic with the model whose states it reads.

    Args:
        model: the policy's model; for a critic of kind "model", the critic's own.
        critic: the critic.
        tokenizer: the policy's.
    """

    def __init__(self, model: Model, critic: Critic, tokenizer):
        self.model = model
        self.critic = critic
        self.tokenizer = tokenizer

    @torch.no_grad()
    def predict_value(
        self,
        prompts: Sequence[Prompt | Sequence[int]],
        *,
        batch_size: int = 32,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        together: bool = False,
    ) -> list[float]:
        """Return the expected score, KL penalty included, of each prompt (text, messages or token ids).

        `chat_template_kwargs` are those of the run that trained the critic. With `together`, every rank makes the same
        number of forward passes (`in_step`), and some may have no prompts.
        """
        none_here = together and len(prompts) == 0
        rows = [] if none_here else prompt_rows(prompts, self.tokenizer, chat_template_kwargs=chat_template_kwargs)
        ids = [row["prompt_ids"] for row in rows]
        device = next(self.critic.head.parameters()).device
        values: list[float] = []
        with keep_modes(self.model, self.critic):
            self.model.eval()
            self.critic.eval()
            batches = [ids[start : start + batch_size] for start in range(0, len(ids), batch_size)]
            for batch in in_step(batches, []) if together else batches:
                # The token after the prompt is a placeholder: the state before it is all that is read.
                sequences = Sequences.from_ids(batch or [[0]], [[0]] * max(len(batch), 1)).to(device)
                hidden = torch.empty(0)
                if self.critic.kind == ValueHeadCritic.kind:
                    with compute_in_base_dtype(self.model):
                        hidden = counted_states(base_of(self.model), sequences)
                values += self.critic(self.model, sequences, hidden).tolist()[: len(batch)]
        return values


def load_value_model(name_or_path: str, *, dtype: str | None = None) -> ValueModel:
    """Load the critic that a PPO run saved beside its policy; the folder or Hub name is the policy's.

    The model is loaded in the dtype in which it was trained, unless `dtype` is another.

    Raises `InputError` when there is none.
    """
    folder = run_folder(name_or_path)
    tokenizer = load_tokenizer(str(folder))
    if (folder / WEIGHTS_NAME).is_file():
        model = _with_adapter(load_causal_lm, folder, POLICY, dtype or str(saved_facts(folder)["dtype"]))
        return ValueModel(model, ValueHeadCritic(ValueHead.from_pretrained(folder)), tokenizer)
    inner = folder / CRITIC_FOLDER
    if not inner.is_dir():
        raise InputError(
            f"{name_or_path!r} holds no critic: neither {WEIGHTS_NAME} nor {CRITIC_FOLDER}/. Give the folder of a PPO"
            " run."
        )
    head, facts = ValueHead.from_pretrained(inner), saved_facts(inner)
    dtype = dtype or str(facts["dtype"])
    if facts["critic"] == AdapterCritic.kind:
        return ValueModel(_with_adapter(load_causal_lm, inner, CRITIC, dtype), AdapterCritic(head), tokenizer)
    classifier = _with_adapter(load_sequence_classifier, inner, CRITIC, dtype)
    return ValueModel(classifier, ModelCritic(classifier, head), tokenizer)


def _with_adapter(load: Callable[..., Model], folder: Path, name: str, dtype: str) -> Model:
    """Return the model in `folder`, or its base with the adapter there under `name`."""
    from hf_rlhf.models.fast.fused_lora import fuse_lora

    if adapter_base(folder) is None:
        return load(str(folder), dtype=dtype)
    with_adapter = load_adapted(load, folder, adapter_name=name, dtype=dtype)
    fuse_lora(with_adapter)  # as in training, so that bf16 rounds alike
    return with_adapter
