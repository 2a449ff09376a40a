"""Embeddings for the tokens that an adapter's tokenizer adds to its base, the same ones at every load."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapter_files import ADAPTER_CONFIG_FILE, ADAPTER_FILE, adapter_base
from hf_rlhf.models.adapters import embedding_rows
from hf_rlhf.models.load import load_tokenizer
from hf_rlhf.types import Model

_WHOLE = ("weight", "base_layer.weight", "original_module.weight", "token_adapter.base_layer.weight")
"""PEFT's names of the whole weight of a module in an adapter file, after the module's own name."""

logger = logging.getLogger(__name__)


def resize_vocabulary(model: Model, rows: int) -> None:
    """Give a transformers model embeddings, and head rows, for `rows` tokens.

    New rows are the mean of the others. transformers draws them at random, so that a model that is loaded twice would
    be two models. Raises `InputError` where ZeRO-3 has split the embeddings over the ranks.
    """
    before = embedding_rows(model)
    if rows == before:
        return
    if model.get_input_embeddings().weight.numel() == 0:
        raise InputError(
            f"the tokenizer needs {rows} embeddings and the model has {before}, which ZeRO-3 has split over the ranks."
            " Resize the model once in one process, save it, and start from that; or take ZeRO-2"
        )
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.has_own_vocabulary = True  # for `save_adapter`
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        for parameter in module.parameters(recurse=False) if module is not None else ():
            parameter.data = with_mean_rows(parameter.data[:before], rows)


def make_room(model: Model, tokens: Sequence[int], peft_config: Any = None) -> None:
    """Give `model` embeddings for new `tokens`, ids, and let the adapter of `peft_config` train their rows.

    Their rows of the head are trained too, where it has its own weight; modules that are trained whole anyway stay so.
    """
    resize_vocabulary(model, max(embedding_rows(model), max(tokens) + 1))
    if peft_config is None:
        return
    names = [name.split(".")[-1] for name in _names_of_ends(model)]
    trained_whole = set(peft_config.modules_to_save or ())
    peft_config.trainable_token_indices = {name: list(tokens) for name in names if name not in trained_whole} or None


def with_mean_rows(weight: Tensor, rows: int) -> Tensor:
    """Return the first `rows` rows of `weight` `(V, ...)`, with its mean for those that it lacks."""
    missing = rows - len(weight)
    if missing <= 0:
        return weight[:rows].clone()
    return torch.cat(
        [weight, weight.float().mean(dim=0, keepdim=True).to(weight.dtype).expand(missing, *weight.shape[1:])]
    )


def fit_vocabulary(base: Model, folder: str | os.PathLike, **kwargs: Any) -> None:
    """Resize `base` to the embeddings with which the adapter in `folder` was trained.

    Args:
        base: the adapter's base, without it.
        folder: the adapter's; it may hold a tokenizer.
        kwargs: for loading that.

    Raises `InputError` when the tokenizer adds tokens whose embeddings no file holds.
    """
    has_tokenizer = (Path(folder) / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(str(folder), distinct_padding=False, **kwargs) if has_tokenizer else None
    before = embedding_rows(base)
    held = {name: _held(name, folder) for name in _names_of_ends(base)}
    tokens: dict[int, str] = {} if tokenizer is None else {n: token for token, n in tokenizer.get_vocab().items()}
    sizes = [each.rows for each in held.values() if each.rows is not None]
    added = {number for each in held.values() for number in each.tokens}
    rows = max(sizes, default=None) or max(before, *(number + 1 for number in (*added, *tokens)), 0)
    lost = {
        name: [number for number in range(before, rows) if each.rows is None and number not in each.tokens]
        for name, each in held.items()
    }
    padding = None if tokenizer is None else tokenizer.pad_token_id
    embeddings = next(iter(lost))
    if read := [number for number in lost[embeddings] if number in tokens and number != padding]:
        named = ", ".join(repr(tokens[number]) for number in read[:3]) + (", ..." if len(read) > 3 else "")
        raise InputError(
            f"the adapter {str(folder)!r} comes with {len(read)} tokens that its base {adapter_base(folder)!r} has no"
            f" embeddings for ({named}: ids up to {read[-1]}, and {before} embeddings), and its file does not hold"
            " them\nSave it again where it was trained, with save_pretrained(..., save_embedding_layers=True), or name"
            f" in {ADAPTER_CONFIG_FILE} a base that was saved after resize_token_embeddings."
        )
    resize_vocabulary(base, rows)
    for name, numbers in lost.items():
        if numbers:
            logger.warning(
                "%s: its file holds no rows of %s for the tokens %d to %d, which its base lacks; they get the mean of"
                " the others",
                folder, name, numbers[0], numbers[-1],
            )  # fmt: skip


def _names_of_ends(model: Model) -> list[str]:
    """Return the names of the input embeddings and, where it has a weight of its own, of the head."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    ends = [embeddings] if head is None or head.weight is embeddings.weight else [embeddings, head]
    return [next(name for name, module in model.named_modules() if module is end) for end in ends]


class _Held(NamedTuple):
    rows: int | None  # of the module's weight, when the adapter's file has all of it
    tokens: set[int]  # whose rows it has


def _held(name: str, folder: str | os.PathLike) -> _Held:
    """Return what the adapter in `folder` holds of the embeddings or head `name`."""
    config = json.loads((Path(folder) / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8"))
    indices = config.get("trainable_token_indices") or config.get("token_indices") or []
    if isinstance(indices, dict):
        last = name.split(".")[-1]
        indices = next((numbers for part, numbers in indices.items() if part.split(".")[-1] == last), [])
    rows, tokens = None, set[int]()
    for key, shape in _shapes(folder):
        rest = key.removeprefix(f"base_model.model.{name}.")
        if rest in _WHOLE:
            rows = shape[0]
        elif rest.split(".")[-1] == "trainable_tokens_delta" and rest != key:
            tokens = set(indices)
    return _Held(rows, tokens)


def _shapes(folder: str | os.PathLike) -> Iterator[tuple[str, tuple[int, ...]]]:
    from safetensors import safe_open

    file = Path(folder) / ADAPTER_FILE
    if file.is_file():
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118
                yield key, tuple(weights.get_slice(key).get_shape())
