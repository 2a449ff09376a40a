"""The words of a text, and how little it repeats itself."""

import re
from itertools import pairwise


def fluency(text: str) -> float:
    """Return the share of distinct bigrams times the share of neighbors that differ, in [0, 1]: 1 without repetition.

    A single word has no bigrams and counts as fluent; no word at all gives 0.
    """
    words = words_of(text)
    if not words:
        return 0.0
    pairs = list(pairwise(words))
    if not pairs:
        return 1.0
    distinct = len(set(pairs)) / len(pairs)
    stutter = sum(left == right for left, right in pairs) / len(pairs)
    return distinct * (1.0 - stutter)


def words_of(text: str) -> list[str]:
    """Return the lower-case words of any script, with inner apostrophes."""
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text.lower().replace("’", "'"))
