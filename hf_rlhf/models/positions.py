"""The number of tokens of one sequence that a model has positions for."""

import re

from torch import nn

from hf_rlhf.models.adapters import base_of
from hf_rlhf.types import Model

_NAME = re.compile(r"position|^wpe$|^pos_emb")  # of a table of positions


def positions(model: Model) -> int | None:
    """Return the most tokens that one sequence may have; None where nothing limits them.

    A table of learned positions decides where there is one. Without a table the config's `max_position_embeddings`
    counts, as for rotary positions, but not where positions are relative.
    """
    if (places := table_positions(model)) is not None:
        return places
    config = model.config.get_text_config()
    relative = getattr(config, "relative_attention", False) or getattr(config, "alibi", False)
    return None if relative else _stated(model)


def table_positions(model: Model) -> int | None:
    """Return the places in the model's table of learned positions, None without one: beyond, it cannot compute.

    The first rows of a table may be no places: those up to its padding row (RoBERTa and its kin count from there), or
    the `offset` of its class (OPT, BART).
    """
    stated = _stated(model)
    if stated is None:
        return None
    found = [
        min(stated, rows - _offset(module))
        for name, module in base_of(model).named_modules()
        if _NAME.search(name.rpartition(".")[2]) and (rows := _rows(module)) >= stated  # not that of an image's patches
    ]
    return min(found, default=None)


def _stated(model: Model) -> int | None:
    """Return what the config says; XLNet and others say with -1 that there is no limit."""
    stated = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return stated if stated is not None and stated > 0 else None


def _rows(module: nn.Module) -> int:
    """Return the rows of an embedding, also of a class that torch does not have (I-BERT's); 0 for anything else."""
    if not hasattr(module, "padding_idx"):
        return 0
    return getattr(module, "num_embeddings", None) or len(module.weight)  # pyright: ignore[reportArgumentType]


def _offset(table: nn.Module) -> int:
    offset = getattr(table, "offset", None)
    if offset is None:
        padding = getattr(table, "padding_idx", None)
        offset = 0 if padding is None else padding + 1
    return int(offset)
