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


def as_list(value: Any, reward: str) -> list[Any]:
    """Return the items of a column's value: several where it is a list, itself alone where it is not.

    Messages are one item, see `plain`, which raises what this does.
    """
    several = isinstance(value, (list, tuple)) and not _are_messages(value)
    return [plain(each, reward) for each in (value if several else [value])]


def plain(value: Any, reward: str) -> Any:
    """Return the text of messages after the user's last one, and any other value as it is.

    Raises `InputError` for another mapping: only Python would write that as text.
    """
    messages = [value] if isinstance(value, Mapping) else value
    if _are_messages(messages):
        asked = max((n for n, message in enumerate(messages) if message.get("role") == "user"), default=-1)
        return completion_text(messages[asked + 1 :])
    if isinstance(value, Mapping):
        raise InputError(
            f"reward {reward!r} reads text, and its column holds a mapping with {', '.join(map(str, value))}. Give the"
            " text a column of its own, and name it by column="
        )
    return value


def _are_messages(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or not value:
        return False
    return all(isinstance(each, Mapping) and "content" in each for each in value)
