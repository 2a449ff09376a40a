"""Rewards and lengths of pairs, in parts that show how far they are."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from hf_rlhf.data.tokens import RefusedByTemplate, options_by_row
from hf_rlhf.errors import InputError
from hf_rlhf.evaluation.report_card.texts import text_of
from hf_rlhf.evaluation.reward_model import Pairs
from hf_rlhf.rewards.calls import call_all
from hf_rlhf.rewards.contract import reward_name
from hf_rlhf.rewards.learned import LearnedReward
from hf_rlhf.rewards.values import episode, finite_number

CHUNK = 64
"""Texts that are scored between two signs of progress."""

Length = Callable[[Any, Any, Mapping[str, Any]], int]
"""`(prompt, answer, row options) -> tokens` of both together. It raises `RefusedByTemplate`."""


class Answers(NamedTuple):
    """Answers to score: `prompts` and `completions` of `B` rows, and the `ROW_OPTIONS` of each."""

    prompts: list[Any]
    completions: list[Any]
    options: list[Mapping[str, Any]]

    @classmethod
    def of(cls, pairs: Pairs, answers: list[Any], rows: Sequence[int] | None = None) -> "Answers":
        """Return `answers` to the prompts of `pairs`; where `rows` is given, to the prompts of these alone."""
        rows = range(len(pairs.prompts)) if rows is None else rows
        options = options_by_row({"prompts": pairs.prompts, **pairs.options})
        return cls([pairs.prompts[row] for row in rows], answers, [options[row] for row in rows])


class ScoredPairs(NamedTuple):
    """Pairs that were scored, with the rewards and the tokens of both texts; and why others were not."""

    pairs: Pairs
    chosen: list[float]
    rejected: list[float]
    chosen_tokens: list[int]
    rejected_tokens: list[int]
    too_long: int = 0
    refused: int = 0
    unscored: int = 0


def length_function(reward: Callable[..., Any]) -> tuple[Length, str]:
    """Return how to count a text in the reward's own tokens, and their name; words for a reward without a tokenizer."""
    if isinstance(reward, LearnedReward):
        return lambda prompt, answer, options: len(reward.tokenize(prompt, answer, **options)), "tokens"
    return lambda prompt, answer, options: len(f"{text_of(prompt)} {text_of(answer)}".split()), "words"


def score_pairs(
    reward: Callable[..., Any], pairs: Pairs, length: Length, max_length: int | None, advance: Callable[[int], None]
) -> ScoredPairs:
    """Score both answers of every pair whose texts have at most `max_length` tokens.

    A pair that is longer, that the chat template refuses, or that the reward does not score (None) is counted.

    Raises `InputError` when no pair is left.
    """
    options = options_by_row({"prompts": pairs.prompts, **pairs.options})
    rows, tokens, too_long, refused = [], [], 0, 0
    for row, (prompt, chosen, rejected) in enumerate(zip(*pairs[:3], strict=True)):
        try:
            both = (length(prompt, chosen, options[row]), length(prompt, rejected, options[row]))
        except RefusedByTemplate:
            refused += 1
            continue
        if max_length is not None and max(both) > max_length:
            too_long += 1
            continue
        rows.append(row)
        tokens.append(both)
    if not rows:
        raise InputError(
            f"no pair can be scored: {too_long} of {len(pairs.prompts)} are longer than max_length={max_length}, and"
            f" the chat template refuses {refused}. Raise max_length, or give other pairs"
        )
    kept = pairs.select(rows)
    texts = [Answers.of(kept, answers) for answers in (kept.chosen, kept.rejected)]
    both = Answers(*(first + second for first, second in zip(*texts, strict=True)))
    rewards = score(reward, both, [own for own, _ in tokens] + [own for _, own in tokens], advance)
    halves = zip(rewards[: len(rows)], rewards[len(rows) :], tokens, strict=True)
    found = [(number, *of_pair) for number, of_pair in enumerate(halves) if None not in of_pair[:2]]
    if not found:
        raise InputError(f"reward {reward_name(reward)!r} scored no pair: it returned None for one text of each")
    numbers, chosen, rejected, lengths = zip(*found, strict=True)
    own, other = zip(*lengths, strict=True)
    return ScoredPairs(
        kept if len(found) == len(rows) else kept.select(numbers),
        *map(list, (chosen, rejected, own, other)),
        too_long=too_long,
        refused=refused,
        unscored=len(rows) - len(found),
    )


def score(
    reward: Callable[..., Any], answers: Answers, lengths: Sequence[int], advance: Callable[[int], None]
) -> list[float | None]:
    """Return one reward for each answer; answers of similar length are scored together.

    Raises `InputError` for anything but a finite number or None.
    """
    name = reward_name(reward)
    rewards: list[float | None] = [None] * len(lengths)
    by_length = sorted(range(len(lengths)), key=lambda row: lengths[row])
    for start in range(0, len(by_length), CHUNK):
        rows = by_length[start : start + CHUNK]
        found = _call(reward, name, Answers(*([column[row] for row in rows] for column in answers)))
        for row, value in zip(rows, found, strict=True):
            rewards[row] = _number(value, name, answers.prompts[row], answers.completions[row])
        advance(len(rows))
    return rewards


def _call(reward: Callable[..., Any], name: str, answers: Answers) -> list[Any]:
    names = {name for options in answers.options for name in options}
    columns = {name: [options.get(name) for options in answers.options] for name in sorted(names)}
    arguments = {"prompts": answers.prompts, "completions": answers.completions, **columns}
    received: list[Any] = []
    call_all([reward], [name], [arguments], [received.append])
    found = received[0]
    if not hasattr(found, "__len__") or isinstance(found, str) or len(found) != len(answers.prompts):
        raise InputError(f"reward {name!r} must return one number for each of {len(answers.prompts)} completions")
    return found.tolist() if hasattr(found, "tolist") else list(found)


def _number(value: Any, name: str, prompt: Any, completion: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, (list, tuple)):  # one for each token
        value = math.fsum(value)
    number = finite_number(value)
    if number is None:
        raise InputError(f"reward {name!r} returned {value!r}, which is no finite number{episode(prompt, completion)}")
    return number
