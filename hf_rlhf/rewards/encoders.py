"""Encoders that named rewards bring with them: loaded once, run in batches of similar length, without gradient."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_rlhf.errors import InputError
from hf_rlhf.models.positions import positions

BATCH_SIZE = 32

logger = logging.getLogger(__name__)


class Encoder:
    """A model in fp32 and its tokenizer, from a folder or the Hub.

    Args:
        auto_class: of transformers, such as `AutoModel`.
        name_or_path: the folder or Hub name. Weights have to be safetensors.
        max_length: tokens after which a text is cut; by default the positions of the model.
        keep_end: whether long texts are cut at their beginning instead of their end.

    Raises `InputError` where there is no such model, and where a part of it was never trained.
    """

    def __init__(self, auto_class: Any, name_or_path: str, *, max_length: int | None = None, keep_end: bool = False):
        from transformers import AutoTokenizer

        try:
            self.model, info = auto_class.from_pretrained(
                name_or_path,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"model={name_or_path} cannot be loaded ({reason}). Name a folder or a Hub model"
            ) from error
        if untrained := [name for name in sorted(info["missing_keys"]) if not name.startswith("pooler.")]:
            raise InputError(
                f"model={name_or_path} has no trained {untrained[0]}, so its numbers would be random. Name a model that"
                " was trained for this"
            )
        self.model.requires_grad_(False).eval()
        self.name = name_or_path
        self.max_length = max_length or positions(self.model)
        self.tokenizer.padding_side = "right"
        self.tokenizer.truncation_side = "left" if keep_end else "right"
        self._warned = False

    def to(self, device: torch.device | str) -> None:
        """Move the model to a device."""
        self.model.to(device)

    @torch.no_grad()
    def run(self, texts: Sequence[str], read: Callable[[Any, Tensor], Tensor]) -> Tensor:
        """Return what `read` makes of the model's output on each of `B` texts: `(B, ...)`, in float32 on the CPU.

        `read` gets the output and the attention mask `(b, L)` of a batch.
        """
        ids = [self._ids(text) for text in texts]
        by_length = sorted(range(len(ids)), key=lambda b: len(ids[b]))
        found: list[Tensor] = [torch.empty(0)] * len(ids)
        for start in range(0, len(ids), BATCH_SIZE):
            rows = by_length[start : start + BATCH_SIZE]
            batch = self.tokenizer.pad({"input_ids": [ids[b] for b in rows]}, return_tensors="pt")
            batch = batch.to(self.model.device)
            for b, value in zip(rows, read(self.model(**batch), batch["attention_mask"]).float().cpu(), strict=True):
                found[b] = value
        return torch.stack(found)

    def _ids(self, text: str) -> list[int]:
        ids = self.tokenizer(text, truncation=False, verbose=False).input_ids
        if self.max_length is None or len(ids) <= self.max_length:
            return ids
        if not self._warned:
            self._warned = True
            end = "beginning" if self.tokenizer.truncation_side == "left" else "end"
            logger.warning(
                "%s reads %d tokens, and a text has %d: of such texts the %s is not read",
                self.name,
                self.max_length,
                len(ids),
                end,
            )
        return self.tokenizer(text, truncation=True, max_length=self.max_length).input_ids
