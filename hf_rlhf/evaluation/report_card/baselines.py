"""Simple rules on the same pairs: length, token count and a bag of words; and whether the reward beats the best one."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_rlhf.data.rows import fingerprint
from hf_rlhf.evaluation.metrics import Z_95, wilson_interval
from hf_rlhf.evaluation.report_card.agreement import characters, share, wins
from hf_rlhf.evaluation.report_card.scoring import ScoredPairs
from hf_rlhf.evaluation.report_card.texts import text_of, words_of
from hf_rlhf.evaluation.reward_model import Pairs

LONGER, SHORTER = "the longer one wins", "the shorter one wins"
MORE_TOKENS, FEWER_TOKENS = "more {unit} win", "fewer {unit} win"
BAG_OF_WORDS = "bag of words"

MAX_TRAIN_PAIRS, MAX_WORDS, FOLDS, MIN_PAIRS = 4000, 2000, 5, 20
"""Most training pairs and words of the bag of words, and its folds and fewest pairs without training pairs."""
RIDGE = 0.07
"""Weight decay of the bag of words: its loss is `mean log(1 + exp(-w.x)) + RIDGE / 2 |w|^2`."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """Accuracy of a rule; `low` and `high` bound it at 95%. `is_length` is true of a rule that only counts."""

    name: str
    accuracy: float
    low: float
    high: float
    is_length: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """Accuracy of the reward minus that of a baseline on the same pairs, bounded at 95% by `low` and `high`.

    `better` and `worse` count the pairs on which the reward, or the baseline, is nearer to the truth, and `p` is the
    two-sided exact binomial test on these (McNemar 1947).
    """

    baseline: str
    is_length: bool
    difference: float
    low: float
    high: float
    better: int
    worse: int
    p: float


def find_baselines(
    scored: ScoredPairs, unit: str, train: Pairs | None, verdicts: Sequence[float]
) -> tuple[list[Baseline], Comparison]:
    """Return the baselines on the scored pairs, and the comparison of the reward's verdicts with the best of them."""
    pairs = scored.pairs
    longer = [characters(c) - characters(r) for c, r in zip(pairs.chosen, pairs.rejected, strict=True)]
    more = [c - r for c, r in zip(scored.chosen_tokens, scored.rejected_tokens, strict=True)]
    rules = {
        LONGER: wins(longer),
        SHORTER: wins(-each for each in longer),
        MORE_TOKENS.format(unit=unit): wins(more),
        FEWER_TOKENS.format(unit=unit): wins(-each for each in more),
    }
    found = {name: (values, True) for name, values in rules.items()}
    if (words := bag_of_words(pairs, train)) is not None:
        how = "" if train is None else ", learned from the training pairs"
        found[BAG_OF_WORDS + (how or ", cross-validated")] = (wins(words), False)
    baselines = []
    for name, (values, is_length) in found.items():
        accuracy = share(values)
        baselines.append(Baseline(name, accuracy, *wilson_interval(accuracy, len(values)), is_length))
    best = max(baselines, key=lambda each: each.accuracy)
    return baselines, compare(verdicts, found[best.name][0], best.name, best.is_length)


def compare(reward: Sequence[float], baseline: Sequence[float], name: str, is_length: bool = True) -> Comparison:
    """Compare two verdicts (1, 0.5 or 0) on each of the same pairs.

    The interval is `mean(d) +- 1.96 * std(d) / sqrt(n)` of the differences d, pair by pair.
    """
    differences = [own - other for own, other in zip(reward, baseline, strict=True)]
    n, mean = len(differences), share(differences)
    variance = sum((each - mean) ** 2 for each in differences) / max(n - 1, 1)
    half = Z_95 * math.sqrt(variance / n)
    better, worse = sum(each > 0 for each in differences), sum(each < 0 for each in differences)
    return Comparison(name, is_length, mean, mean - half, mean + half, better, worse, sign_test(better, worse))


def sign_test(better: int, worse: int) -> float:
    """Return the two-sided p-value of `better` against `worse`: `2 P(X <= min), X ~ B(better + worse, 1/2)`."""
    n, least = better + worse, min(better, worse)
    logs = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(least + 1)
    )
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def bag_of_words(pairs: Pairs, train: Pairs | None = None) -> list[float] | None:
    """Return for each pair how much a logistic regression on its differences of word counts prefers the chosen answer.

    It learns from `train`, or else from the other folds of the pairs themselves; pairs of one prompt are in one fold.
    None where there are too few pairs to learn from.
    """
    counts = _word_differences(pairs)
    if train is not None:
        known = _word_differences(train.select(spread(len(train.prompts), MAX_TRAIN_PAIRS)))
        return _learned(known, counts)
    if len(counts) < MIN_PAIRS:
        return None
    fold_of = _folds(pairs)
    preferences = [0.0] * len(counts)
    for fold in sorted(set(fold_of)):
        rows = [row for row, own in enumerate(fold_of) if own == fold]
        others = [row for row, own in enumerate(fold_of) if own != fold]
        if not others:
            return None  # one prompt has them all
        known = [counts[others[number]] for number in spread(len(others), MAX_TRAIN_PAIRS)]
        for row, preference in zip(rows, _learned(known, [counts[row] for row in rows]), strict=True):
            preferences[row] = preference
    return preferences


def _word_differences(pairs: Pairs) -> list[dict[str, int]]:
    differences = []
    for chosen, rejected in zip(pairs.chosen, pairs.rejected, strict=True):
        own, other = (Counter(words_of(text_of(answer))) for answer in (chosen, rejected))
        words = sorted(own.keys() | other.keys())
        differences.append({word: own[word] - other[word] for word in words if own[word] != other[word]})
    return differences


def _learned(known: Sequence[dict[str, int]], asked: Sequence[dict[str, int]]) -> list[float]:
    frequency = Counter(word for row in known for word in row)
    words = [word for word, _ in sorted(frequency.items(), key=lambda item: (-item[1], item[0]))[:MAX_WORDS]]
    column = {word: number for number, word in enumerate(words)}
    weights = fit_logistic(_matrix(known, column))
    return (_matrix(asked, column) @ weights).tolist()


def fit_logistic(features: Tensor, ridge: float = RIDGE, steps: int = 100) -> Tensor:
    """Return the weights of least `mean log(1 + exp(-w.x)) + ridge / 2 |w|^2`; in each row, chosen comes first.

    Features `(N, V)` in fp64 -> weights `(V,)`, by L-BFGS from zero; deterministic.
    """
    weights = torch.zeros(features.shape[1], dtype=features.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=steps, line_search_fn="strong_wolfe", tolerance_grad=1e-9, tolerance_change=1e-12
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.softplus(-(features @ weights)).mean() + ridge / 2 * weights.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # pyright: ignore[reportArgumentType]
    return weights.detach()


def _matrix(rows: Sequence[dict[str, int]], column: dict[str, int]) -> Tensor:
    places = [(n, column[word], count) for n, row in enumerate(rows) for word, count in row.items() if word in column]
    matrix = torch.zeros(len(rows), max(len(column), 1), dtype=torch.float64)
    if places:
        numbers, columns, counts = zip(*places, strict=True)
        matrix[list(numbers), list(columns)] = torch.tensor(counts, dtype=torch.float64)
    return matrix


def _folds(pairs: Pairs) -> list[int]:
    """Return the fold of each pair: prompts take turns in the order in which they appear."""
    if not any(pairs.prompts):  # whole texts
        return [row % FOLDS for row in range(len(pairs.prompts))]
    order: dict[bytes, int] = {}
    return [order.setdefault(fingerprint(prompt), len(order)) % FOLDS for prompt in pairs.prompts]


def spread(count: int, most: int) -> list[Any]:
    """Return at most `most` of `count` rows, spread evenly."""
    step = max(count / most, 1)
    return [int(number * step) for number in range(min(count, most))]
