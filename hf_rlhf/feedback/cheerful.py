"""A simulated annotator who likes short, warm, cheerful replies.

It stands in for people in the quickstart and in tests. It reads the reply alone and counts words: it knows nothing of
truth, of helpfulness or of the prompt, so what it likes makes a demonstration and is no measure of a good assistant.
"""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import dataclass
from hashlib import sha256

from hf_rlhf.evaluation.fluency import fluency, words_of

# Word families between semicolons: a family counts once, whichever and however many of its forms appear.
_WARM_WORDS = """
love loves loved loving; lovely; wonderful wonderfully; happy happily happier happiness; glad gladly; enjoy enjoys
enjoyed enjoying enjoyable; great; exciting excited excitement; delighted delight delightful; fun; beautiful beautifully
beauty; proud pride; hope hopes hoping hopeful; amazing amazed; awesome; fantastic; brilliant; excellent; perfect
perfectly; cheerful cheer cheers; joy joyful joyous; smile smiles smiling; laugh laughs laughing laughter; warm warmth
warmly; cozy cosy; sweet; kind kindness; thank thanks; grateful gratitude; congratulations congrats; celebrate
celebrating celebration; welcome; hug hugs; treat; treasure treasured; cherish cherished; charming; adorable; cute;
magical magic; marvelous marvellous; splendid; superb; terrific; fabulous; gorgeous; stunning; pleasant; pleased
pleasure; thrilled thrilling; inspiring inspired; relaxing; refreshing; peaceful; bright brighten brighter; sunshine;
sparkle; delicious; tasty; yummy; rewarding; impressive; incredible; special; favorite favourite; friendly; caring;
blessed; lucky; comforting; memorable; precious; bravo; hooray yay; wow
"""
_WARM_PHRASES = ("well done", "good luck", "good job", "have a good", "have a nice", "sounds good", "look forward")
_FAMILY = {form: words.split()[0] for words in _WARM_WORDS.split(";") for form in words.split()}
_NEGATING_WORDS = "not no never without isn't wasn't don't doesn't didn't can't cannot won't"
_NEGATIONS = frozenset(_NEGATING_WORDS.split())
# Words that hold sentences together: a reply without them is a heap of words.
_GLUE_WORDS = """
a an the and but or so if that this these those it it's its i i'm i'd i'll i've you you're you'll you've your we our they
he she my me to of in on at for with from by about as is are was be been have has had do can will would could should what
how when there that's there's let's not just
"""
_GLUE = frozenset(_GLUE_WORDS.split())
_GOOD_ENOUGH = 0.7  # a rating that needs no correction


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """A reply to judge. `finished` is False where the length limit cut it off."""

    text: str
    finished: bool = True


@dataclass(frozen=True, slots=True)
class Preference:
    """One judgment. `probability` is the chance with which the annotator makes this choice rather than the other."""

    prompt: str
    chosen: Candidate
    rejected: Candidate
    probability: float


@dataclass(frozen=True, slots=True)
class CheerfulAnnotator:
    """A person who prefers short, warm, cheerful replies, and whose choices are partly random.

    rating = warmth * brevity * craft, each in [0, 1]:

    - warmth  = 0.2 + 0.8 * (1 - exp(-n / 2)); n = distinct warm word families and phrases, not negated,
                plus one when n > 0 and there is an exclamation mark.
    - brevity = min(1, words / 4) * min(1, 40 / words)^2, times 0.4 for a reply that was cut off.
    - craft   = fluency^2 * density * glue * tidiness: no repetition, warm words inside sentences rather than alone,
                enough small words to hold a sentence together, real letters and ordinary punctuation.

    `noise` is the temperature of the choice (see `prefer`): 0 always takes the higher rating. Two replies whose
    ratings differ by no more than `tie_margin` are alike to this annotator.
    """

    noise: float = 0.1
    seed: int = 0
    tie_margin: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise ValueError(
                f"noise={self.noise} must be a finite number of at least 0; 0 always prefers the higher rating"
            )

    def rate(self, completion: str, finished: bool = True) -> float:
        """Return this annotator's rating of a reply, in [0, 1]. The same text always gets the same rating."""
        words = words_of(completion)
        if not words:
            return 0.0
        families, hits = _warm(words)
        n = len(families) + (1 if families and "!" in completion else 0)
        warmth = 0.2 + 0.8 * (1.0 - math.exp(-n / 2))
        brevity = min(1.0, len(words) / 4) * min(1.0, 40 / len(words)) ** 2 * (1.0 if finished else 0.4)
        # One warm word is free; the share of the others may reach 0.3, and at 0.5 the reply is a list of warm words.
        density = _ramp((hits - 1) / len(words), zero_at=0.5, full_at=0.3)
        glue = 0.3 + 0.7 * _ramp(sum(word in _GLUE for word in words) / len(words), zero_at=0.0, full_at=0.2)
        return warmth * brevity * fluency(completion) ** 2 * density * glue * _tidiness(completion, words)

    def correct(self, completion: str) -> str:
        """Return a reply as this annotator would have it: itself where it is rated well, else its start made warm."""
        if self.rate(completion) >= _GOOD_ENOUGH:
            return completion
        sentence = re.split(r"(?<=[.!?])\s", completion.strip(), maxsplit=1)[0]
        short = " ".join(sentence.split()[:20]).rstrip(",;:")
        return f"{short}{'' if not short or short[-1] in '.!?' else '.'} I hope you enjoy it!".strip()

    def prefer(self, prompt: str, a: Candidate, b: Candidate) -> Preference | None:
        """Choose between two replies, or give None where both are alike.

        P(a preferred) = sigmoid((rate(a) - rate(b)) / noise)  (Bradley and Terry 1952). The draw comes from
        (seed, prompt, the two replies as a set), so it is reproducible and does not depend on the order of a and b.
        """
        first, second = sorted((a, b))
        margin = self.rate(first.text, first.finished) - self.rate(second.text, second.finished)
        if abs(margin) < max(self.tie_margin, 1e-9):  # equal but for rounding
            return None
        p_first = _sigmoid(margin / self.noise) if self.noise > 0 else float(margin > 0)
        key = json.dumps([self.seed, prompt, first.text, first.finished, second.text, second.finished])
        rng = random.Random(int.from_bytes(sha256(key.encode()).digest(), "big"))
        if rng.random() < p_first:
            return Preference(prompt, chosen=first, rejected=second, probability=p_first)
        return Preference(prompt, chosen=second, rejected=first, probability=1.0 - p_first)


def _warm(words: list[str]) -> tuple[set[str], int]:
    """Return the distinct warm families and phrases among the words, and how many warm words there are in all."""
    families: set[str] = set()
    hits = 0
    for i, word in enumerate(words):
        if word in _FAMILY and not _NEGATIONS.intersection(words[max(0, i - 2) : i]):
            families.add(_FAMILY[word])
            hits += 1
    line = f" {' '.join(words)} "
    phrases = {phrase for phrase in _WARM_PHRASES if f" {phrase} " in line}
    return families | phrases, hits + len(phrases)


def _tidiness(text: str, words: list[str]) -> float:
    """Return 1 for ordinary spelling and punctuation; less for odd characters, non-words or no final full stop."""
    visible = [c for c in text if not c.isspace()]
    letters = _ramp(sum(c.isalpha() for c in visible) / len(visible), zero_at=0.3, full_at=0.75)
    spelled = _ramp(sum(map(_wordlike, words)) / len(words), zero_at=0.5, full_at=1.0)
    shouting = 0.5 if re.search(r"[!?]{2,}|[.,;:*#_~-]{4,}", text) else 1.0
    exclaiming = min(1.0, 3 / max(1, text.count("!")))
    ended = 0.8 if visible[-1].isalnum() else 1.0
    return letters * spelled * shouting * exclaiming * ended


def _wordlike(word: str) -> bool:
    """Return whether a word has a vowel, no letter three times in a row, and a reasonable length."""
    return len(word) <= 18 and not re.search(r"(.)\1\1", word) and bool(re.search(r"[aeiouyà-ÿ]", word))


def _ramp(x: float, *, zero_at: float, full_at: float) -> float:
    """Return the value of a straight line from 0 at `zero_at` to 1 at `full_at`, flat outside."""
    return min(1.0, max(0.0, (x - zero_at) / (full_at - zero_at)))


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))
