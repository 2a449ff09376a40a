"""Texts of models, made harmless to read: characters that hide, or that reorder others, are shown by their number."""

import unicodedata
from collections.abc import Mapping

_JOINERS = "\u200c\u200d"  # of Persian and of emoji, without which those are written otherwise
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
WITH_SIGNS = {"\n": "↵\n", "\t": "⇥\t", "\r": "␍"}
IN_ONE_LINE = {"\n": "↵", "\t": "⇥", "\r": "␍"}
AS_THEY_ARE = {"\n": "\n", "\t": "\t"}
PART = "▯"
"""Sign of a token that holds a part of a character's bytes."""


def visible(text: str, signs: Mapping[str, str] = WITH_SIGNS) -> str:
    """Return text in which every character is seen: `signs` for some, the number of others that have no form."""
    if text.isprintable():
        return text
    return "".join(signs.get(each) or (f"⟨U+{ord(each):04X}⟩" if _hides(each) else each) for each in text)


def in_one_line(text: str, limit: int) -> str:
    """Return the beginning of a text as one line of at most `limit` characters, and how much there is besides."""
    beginning = visible(text[:limit], IN_ONE_LINE)
    return beginning if len(text) <= limit else f"{beginning} … ({len(text) - limit} more characters)"


def _hides(character: str) -> bool:
    return unicodedata.category(character) in _HIDDEN and character not in _JOINERS
