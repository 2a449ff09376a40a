"""The verdict on a reward: good, usable with care, or do not use, with the reasons in words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hf_rlhf.evaluation.report_card.agreement import Agreement
from hf_rlhf.evaluation.report_card.baselines import Comparison
from hf_rlhf.evaluation.report_card.calibration import Calibration, LengthEffect
from hf_rlhf.evaluation.report_card.probes import FEW_ANSWERS, ProbeResult

GOOD, CARE, REFUSED = "good", "usable with care", "do not use"

FEW_PAIRS = 100
"""Pairs below which intervals are so wide that the card cannot say "good"."""
LENGTH_IS_ALL, LENGTH_IS_MUCH = 0.8, 0.5
"""Correlation of reward differences with length differences from which the reward has learned length, or much of it."""
ALWAYS_ONE_LENGTH = 0.95
"""Share of pairs in which the longer text, or the shorter one, gets the higher reward, from which it decides alone."""
LENGTH_OF_PEOPLE = 0.15
"""Difference from the share that people chose by length, from which it is a habit of the reward's, if it is certain."""
FEW_UNEQUAL = 20
"""Pairs of different length below which no share of them is a habit."""
CERTAIN = 0.05
"""Probability of a difference by chance, below which it is called certain."""
OVERCONFIDENT = 0.05
"""Mean probability minus accuracy from which probabilities should not be taken at their word."""
MANY_PROBES = 4
"""Failed probes from which the reward is not usable."""
MANY_SKIPPED = 0.1
"""Share of pairs that were not scored, from which the card speaks for a part of the set only."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Finding with its figure, the remedy, and the verdict that it leads to."""

    what: str
    figure: str
    do: str
    verdict: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The worst verdict of its reasons; without one it is good. `headline` says it in one sentence."""

    word: str
    headline: str
    reasons: list[Reason]


@dataclass(frozen=True, slots=True)
class Findings:
    """The figures that the verdict is made of. `similar` is None where no pair has answers of similar length."""

    accuracy: Agreement
    similar: Agreement | None
    best: Comparison
    length: LengthEffect
    calibration: Calibration
    probes: Sequence[ProbeResult]
    skipped: float
    std: float


def judge(found: Findings) -> Verdict:
    """Return the verdict on these figures."""
    reasons = [*_about_length(found), *_about_accuracy(found), *_about_probes(found), *_about_rest(found)]
    order = (REFUSED, CARE)
    reasons.sort(key=lambda reason: order.index(reason.verdict))
    word = reasons[0].verdict if reasons else GOOD
    return Verdict(word, _headline(word, found), reasons)


def _headline(word: str, found: Findings) -> str:
    own, best = found.accuracy, found.best
    points = abs(100 * best.difference)
    side = "above" if best.difference >= 0 else "below"
    return (
        f"{word.capitalize()}: right on {own.accuracy:.1%} of {own.n} pairs (95% interval {own.low:.1%} to"
        f" {own.high:.1%}), {points:.1f} points {side} the best simple rule ({best.baseline})."
    )


def _about_accuracy(found: Findings) -> Iterator[Reason]:
    own = found.accuracy
    interval = f"{own.accuracy:.1%} (95% interval {own.low:.1%} to {own.high:.1%})"
    if found.std == 0:
        yield Reason(
            "It gives every answer the same reward.",
            "standard deviation 0",
            "Check that the score head was trained and saved.",
            REFUSED,
        )
    elif own.high < 0.5:
        yield Reason(
            "It prefers the worse answer.",
            f"accuracy {interval}",
            "Check whether the columns chosen and rejected are swapped, in training or here.",
            REFUSED,
        )
    elif own.low <= 0.5:
        yield Reason(
            "It is not shown to be better than a coin.",
            f"accuracy {interval}; a coin has 50%",
            "Train it longer or on more pairs, or measure it on more pairs.",
            REFUSED,
        )
    else:
        yield from _about_best(found.best)


def _about_best(best: Comparison) -> Iterator[Reason]:
    figure = (
        f"accuracy minus that of this rule: {100 * best.difference:+.1f} points (95% interval {100 * best.low:+.1f} to"
        f" {100 * best.high:+.1f}, p = {best.p:.2g})"
    )
    certain = best.p < CERTAIN
    if best.difference <= 0 and (best.is_length or certain):
        yield Reason(
            f"A simple rule does {'better' if certain and best.difference < 0 else 'as well'}: {best.baseline}.",
            figure,
            "Train on more pairs, or on pairs that this rule does not decide.",
            REFUSED,
        )
    elif not certain:
        yield Reason(
            f"It is not shown to be better than a simple rule: {best.baseline}.",
            figure,
            "Measure it on more pairs. If the rule still does as well, train on more pairs.",
            CARE,
        )


def _about_length(found: Findings) -> Iterator[Reason]:
    length, similar = found.length, found.similar
    often = max(length.picks_longer, 1 - length.picks_longer)
    side = "longer" if length.picks_longer >= 0.5 else "shorter"
    habit = (
        f"the {side} text has the higher reward in {often:.0%} of the {length.unequal} pairs whose texts differ in"
        f" {length.unit}; the correlation of reward and length differences is {length.correlation:+.2f}"
    )
    excess = length.picks_longer - length.people_pick_longer
    certain = length.excess_low > 0 or length.excess_high < 0
    if length.unequal < FEW_UNEQUAL:
        pass
    elif abs(length.correlation) >= LENGTH_IS_ALL or often >= ALWAYS_ONE_LENGTH:
        yield Reason(
            "It has learned length: its rewards say little more than how long an answer is.",
            habit,
            "Train on pairs of similar length, or on pairs in which length and quality do not go together.",
            REFUSED,
        )
    elif abs(length.correlation) >= LENGTH_IS_MUCH or (certain and abs(excess) >= LENGTH_OF_PEOPLE):
        more = "longer" if (excess if certain else length.correlation) > 0 else "shorter"
        people = length.people_pick_longer if side == "longer" else 1 - length.people_pick_longer
        yield Reason(
            "Length moves its rewards more than it should.",
            f"{habit}; people chose the {side} text in {people:.0%}",
            f"Watch completions/mean_length in PPO: completions may become {more} for the reward alone. length_penalty"
            " or max_completion_length limits this.",
            CARE,
        )
    if similar is not None and similar.low <= 0.5:
        yield Reason(
            "On pairs of similar length it is not shown to be better than a coin.",
            f"{similar.accuracy:.1%} of {similar.n} pairs (95% interval {similar.low:.1%} to {similar.high:.1%})",
            "Add pairs of similar length, to training and to this set.",
            CARE,
        )


def _about_probes(found: Findings) -> Iterator[Reason]:
    failed = [probe for probe in found.probes if probe.failed]
    if len(failed) >= MANY_PROBES:
        yield Reason(
            f"It prefers damaged answers in {len(failed)} of {len(found.probes)} probes.",
            ", ".join(f"{probe.name} {probe.preferred:.0%} of {probe.n}" for probe in failed),
            "Do not train a policy against it. Add such answers to the training pairs as rejected ones.",
            REFUSED,
        )
        return
    if failed:
        yield Reason(
            f"It prefers damaged answers in {'a probe' if len(failed) == 1 else f'{len(failed)} probes'}:"
            f" {', '.join(probe.name for probe in failed)}.",
            "; ".join(
                f"{probe.name}: {probe.preferred:.0%} of {probe.counted} preferred (95% interval {probe.low:.0%} to"
                f" {probe.high:.0%})"
                for probe in failed
            ),
            "Add such answers to the training pairs as rejected ones, and read samples.jsonl during PPO. "
            + " ".join(probe.then for probe in failed),
            CARE,
        )


def _about_rest(found: Findings) -> Iterator[Reason]:
    tried = max((probe.n for probe in found.probes), default=0)
    if tried < min(FEW_ANSWERS, found.accuracy.n):  # who does not look finds no weakness
        yield Reason(
            "The probes tried too few damaged answers to find a weakness.",
            f"{tried} answers a probe; the card asks for {FEW_ANSWERS}",
            "Run them: omit probe_rows, or raise it.",
            CARE,
        )
    if found.accuracy.n < FEW_PAIRS:
        yield Reason(
            "There are few pairs, so every figure is uncertain.",
            f"{found.accuracy.n} pairs; the card asks for {FEW_PAIRS}",
            "Measure it on more pairs.",
            CARE,
        )
    probability = found.accuracy.accuracy + found.calibration.overconfidence
    if found.calibration.overconfidence >= OVERCONFIDENT and probability > found.accuracy.high:
        yield Reason(
            "It is more certain than it is right.",
            f"its reward differences stand for {probability:.1%} right answers, and {found.accuracy.accuracy:.1%} are",
            "Use its rewards for the order of answers only, and scale them in PPO (use_score_scaling).",
            CARE,
        )
    if found.skipped >= MANY_SKIPPED:
        yield Reason(
            "Many pairs could not be scored, so the card speaks for a part of the set.",
            f"{found.skipped:.0%} of the pairs are too long, refused by the chat template, or got no reward",
            "Raise max_length, or take a base with more positions.",
            CARE,
        )
