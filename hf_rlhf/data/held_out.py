"""Rows held out of a set for an evaluation, by their prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hf_rlhf.data.checks import prompt_problems
from hf_rlhf.data.conversions import BadValue
from hf_rlhf.data.dialogues import MalformedDialogue
from hf_rlhf.data.layouts import IMPLICIT_TEXT, layout_of, prompt_columns, prompt_of
from hf_rlhf.data.rows import BadRows, LoadedRows, fingerprint
from hf_rlhf.data.shapes import rows_converted
from hf_rlhf.data.tokens import NOTHING
from hf_rlhf.errors import InputError

_HASHES = 2**64


def hold_out(rows: LoadedRows, fraction: float) -> tuple[LoadedRows, LoadedRows]:
    """Split rows into those to train on and those to evaluate on, such that no prompt is in both.

    A prompt is held out when its hash is below `fraction` of all hashes. So it is on the same side whatever the order
    of the rows, the other rows, the number of ranks and the stage are, in every dataset of a mixture, and as text or as
    the user's message. The share of rows is near `fraction`, and not exactly it. Rows without a prompt that can be told
    stay in training, where they are reported. A text without a prompt is its own.

    Raises InputError for pairs of whole texts, whose prompts cannot be told, and where one side would be empty.
    """
    keys = prompt_keys(rows)
    held = [key is not None and is_below(key, fraction) for key in keys]
    if all(held) or not any(held):
        prompts = len(set(keys) - {None})
        raise InputError(
            f"eval_fraction={fraction:g} is invalid: it holds out {'all' if all(held) else 'none'} of the {prompts}"
            f" prompts of {rows.source}. {'Lower' if all(held) else 'Raise'} it, or give eval_dataset_name"
        )
    train, evaluation = (rows.select([n for n, each in enumerate(held) if each == side]) for side in (False, True))
    return train, replace(evaluation, bad_rows=BadRows(rows.bad_rows.limit))


def is_held_out(prompt: Any, fraction: float) -> bool:
    """Return whether `hold_out` puts the rows of a prompt (text or messages) on the side to evaluate on."""
    return is_below(prompt_key(prompt), fraction)


def is_below(key: bytes, fraction: float) -> bool:
    """Return whether `hold_out` puts the prompt of a key of `prompt_keys` on the side to evaluate on."""
    return int.from_bytes(key[:8], "big") < fraction * _HASHES


def prompt_keys(rows: LoadedRows) -> list[bytes | None]:
    """Return a digest of the prompt of each row, None where a row has no prompt that can be told.

    Text has the digest of the same text as the user's message. Raises `InputError` for pairs of whole texts.
    """
    layout = layout_of(rows.dataset, source=rows.source)
    if layout.prompts == "public":
        _, made = rows_converted(rows, layout.public, NOTHING)  # whatever the ratings are
        return [None if isinstance(each, BadValue) else prompt_key(each.prompt) for each in made]
    if layout.pairs == IMPLICIT_TEXT:
        raise InputError(
            f"eval_fraction is invalid: the pairs of {rows.source} are whole texts, so their prompts cannot be told."
            " Add a column prompt, or give eval_dataset_name"
        )
    names = prompt_columns(layout, rows.dataset.column_names) or list(layout.texts)
    read = rows.read(names)
    if not layout.prompts:
        return [fingerprint(*row.values()) for row in read.by_row()]
    problems = zip(*prompt_problems({name: read.columns[name] for name in names}, layout).values(), strict=True)
    keys: list[bytes | None] = []
    for row, found in zip(read.by_row(), problems, strict=True):
        try:
            prompt = None if any(found) else prompt_of(row, prompts=layout.prompts, pairs=layout.pairs)
        except MalformedDialogue:
            prompt = None
        keys.append(None if prompt is None else prompt_key(prompt))
    return keys


def prompt_key(prompt: Any) -> bytes:
    """Return the digest of a prompt, in which text is the same as that text in one message of the user."""
    return fingerprint([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)
