"""Measures of what a model writes: length and end, diversity, repetition, refusals."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from hf_rlhf.evaluation.fluency import fluency, words_of
from hf_rlhf.types import Trajectory

REPETITIVE = 0.5
"""A completion with a `fluency` below this counts as repetitive: half of its neighboring word pairs are repeated."""

_REFUSAL = re.compile(
    r"\s*(i['’]?m (really |very |so |truly )?(sorry|unable|not able|afraid (that )?i)|(i am|we are) (very |so )?"
    r"(sorry|unable|not able)|sorry\b|i apologi[sz]e|my apologies|unfortunately,? i |i (can ?not|can['’]t|won['’]t|"
    r"will not|could not|must decline|must refuse|decline)\b|as an ai\b|as a language model\b|i don['’]t feel"
    r" comfortable)",
    re.IGNORECASE,
)


def is_refusal(text: str) -> bool:
    """Return whether a text begins as stock refusals in English do. It is a rule of thumb, not a classifier."""
    return _REFUSAL.match(text) is not None


def refusal_rate(texts: Sequence[str]) -> float:
    """Return the share of texts that begin as a refusal."""
    return sum(map(is_refusal, texts)) / len(texts)


def repetition_rate(texts: Sequence[str]) -> float:
    """Return the share of texts that repeat themselves: `fluency` below `REPETITIVE`, empty ones excluded."""
    return sum(bool(words_of(text)) and fluency(text) < REPETITIVE for text in texts) / len(texts)


def distinct_n(texts: Sequence[str], n: int) -> float | None:
    """Return the share of different n-grams of words among all n-grams of all texts (Li et al. 2016, arXiv:1510.03055).

    It falls with the amount of text: compare it over the same number of prompts. None where no text has `n` words.
    """
    grams = [tuple(words[i : i + n]) for words in map(words_of, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def self_similarity(texts: Sequence[str], embed: Any = None) -> float | None:
    """Return how alike the completions of different prompts are: the mean over all pairs of texts; None without a pair.

    Args:
        texts: one completion of each prompt.
        embed: gives the embeddings `(B, H)` of texts, each of length 1, and two texts are as alike as their cosine.
            None: as alike as their sets of words are (Jaccard: words of both divided by words of either).
    """
    n = len(texts)
    if n < 2:
        return None
    if embed is not None:
        total = embed(texts).double().sum(dim=0)
        return float((total @ total - n) / (n * (n - 1)))
    sets = [set(words_of(text)) for text in texts]
    pairs = [(sets[i], sets[j]) for i in range(n) for j in range(i)]
    return sum(len(a & b) / len(a | b) if a | b else 1.0 for a, b in pairs) / len(pairs)


@dataclass(frozen=True, slots=True)
class TextMeasures:
    """Measures of one completion of each prompt by one model."""

    completions: int
    tokens: float  # of a completion, mean
    characters: float  # of a completion, mean
    finished: float  # share that came to an end before the length limit
    fluency: float  # `fluency`, mean
    distinct_1: float | None
    distinct_2: float | None
    self_similarity: float | None
    repetitive: float  # share, see `repetition_rate`
    refusals: float  # share, see `is_refusal`


def measure_texts(trajectories: Sequence[Trajectory], embed: Any = None) -> TextMeasures:
    """Measure the completions of a model; `embed` is that of `self_similarity`."""
    texts = [each.text for each in trajectories]
    return TextMeasures(
        completions=len(texts),
        tokens=fmean(len(each.completion.ids) for each in trajectories),
        characters=fmean(map(len, texts)),
        finished=fmean(each.completion.stopped for each in trajectories),
        fluency=fmean(map(fluency, texts)),
        distinct_1=distinct_n(texts, 1),
        distinct_2=distinct_n(texts, 2),
        self_similarity=self_similarity(texts, embed),
        repetitive=repetition_rate(texts),
        refusals=refusal_rate(texts),
    )
