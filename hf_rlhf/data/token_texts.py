"""The text of each token, where a character may be made of the bytes of several."""

from collections.abc import Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""Character that a tokenizer's text ends with while the bytes of its last character are not all there."""

_LONGEST_CHARACTER = 4  # bytes of UTF-8, and so tokens
_MOST_WAITING = 16  # tokens that are looked at together


def texts_of_tokens(ids: Sequence[int], tokenizer) -> list[str]:
    """Return the text that each token adds, special tokens included. Together they are the text of all.

    The text of a character whose bytes are in several tokens is that of the last of them, and the others have "".
    Bytes that are no character are `UNFINISHED`, as the tokenizer decodes them.
    """
    ids, texts = list(ids), []
    start = known = 0  # tokens from `start` are decoded together; those before `known` have their text

    def decoded(end: int) -> str:
        return tokenizer.decode(ids[start:end], skip_special_tokens=False)

    for end in range(1, len(ids) + 1):
        whole = decoded(end)
        settled = end
        if whole.endswith(UNFINISHED) and end < len(ids):
            if end - known < _MOST_WAITING:
                continue
            settled = end - _LONGEST_CHARACTER + 1
        before = _common(decoded(known), whole)
        for place in range(known + 1, settled + 1):
            up_to = max(_common(decoded(place), whole) if place < end else len(whole), before)
            texts.append(whole[before:up_to])
            before = up_to
        start, known = known, settled
    return texts


def _common(one: str, other: str) -> int:
    """Return the number of characters with which both begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
