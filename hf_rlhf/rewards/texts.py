"""The text of a completion and the columns of its row, as named rewards read them."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_rlhf.errors import InputError


def completion_text(completion: Any) -> str:
    """Return the text of a completion: the text itself, or the contents of its messages, one below the other."""
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message.get("content") or "") for message in completion)


def column_of(columns: Mapping[str, Sequence[Any]], name: str, reward: str) -> Sequence[Any]:
    """Return a column of the rows. Raises `InputError` for one that they do not have."""
    if name not in columns:
        raise InputError(
            f"reward {reward!r} reads the column {name!r}, and the rows have {', '.join(columns) or 'none'} besides the"
            " prompt. Add it, or name another by column="
        )
    return columns[name]


def as_list(value: Any) -> list[Any]:
    """Return the items of a column's value: several where it is a list, itself alone where it is not."""
    return list(value) if isinstance(value, (list, tuple)) else [value]
