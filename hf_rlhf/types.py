"""Data that passes between the parts, and the one axis legend.

Axes: `B` sequences, `P` prompt tokens, `T` completion tokens, `L = P + T` tokens of a sequence, `N` counted tokens of
a batch laid end to end, `H` hidden size, `V` vocabulary.

Masks are boolean and mean one thing everywhere: True where a sampled token counts.
"""

from typing import TypedDict


class Message(TypedDict):
    """One chat message, in the format of `tokenizer.apply_chat_template`."""

    role: str
    content: str


Prompt = str | list[Message]
