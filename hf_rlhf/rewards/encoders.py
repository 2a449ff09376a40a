"""Encoders that named rewards bring with them: loaded once, run in batches of similar length, without gradient."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_rlhf.errors import InputError
from hf_rlhf.models.positions import positions
from hf_rlhf.ops.padding import lengths_to_mask, pad_sequences

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
        ids = [self._ids(text) or [self._nothing] for text in texts]
        by_length = sorted(range(len(ids)), key=lambda b: len(ids[b]))
        found: list[Tensor] = [torch.empty(0)] * len(ids)
        size = 1 if self._padding is None else BATCH_SIZE
        for start in range(0, len(ids), size):
            rows = by_length[start : start + size]
            input_ids = pad_sequences([ids[b] for b in rows], self._padding or 0)
            mask = lengths_to_mask(torch.tensor([len(ids[b]) for b in rows]), input_ids.shape[1]).long()
            input_ids, mask = input_ids.to(self.model.device), mask.to(self.model.device)
            values = read(self.model(input_ids=input_ids, attention_mask=mask), mask)
            for b, value in zip(rows, values.float().cpu(), strict=True):
                found[b] = value
        return torch.stack(found)

    @property
    def _padding(self) -> int | None:
        """The padding id of the model's own config, None without one.

        A decoder reads its last token that has another id, so the tokenizer's padding id may not stand for it.
        """
        padding = self.model.config.get_text_config().pad_token_id
        return None if padding is None or padding < 0 else padding

    @property
    def _nothing(self) -> int:
        """The id that stands for a text without tokens: the end token, where there is one."""
        eos = self.tokenizer.eos_token_id
        return (self._padding or 0) if eos is None else eos

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
