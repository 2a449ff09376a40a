"""Preferences between a policy and one baseline, prompt by prompt, and the win rates that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hf_rlhf.evaluation.length_control import length_controlled_win_rate
from hf_rlhf.evaluation.metrics import WinRate, preference_rate, preferences_of, summarize

REWARD, JUDGE, PEOPLE = "reward", "judge", "people"


@dataclass(frozen=True)
class Opinions:
    """Preferences of one reward, one judge or some people between the policy and a baseline.

    Attributes:
        by: `reward`, `judge` or `people`.
        name: of the reward or judge.
        baseline: name of the baseline.
        preferences: one a prompt: 1 where the policy's completion is preferred, 0 where the baseline's is, 0.5 for a
            tie, and None where there is no answer. Such a prompt counts nowhere.
        details: more numbers about who compared, such as the agreement of a judge with itself.
    """

    by: str
    name: str
    baseline: str
    preferences: Sequence[float | None]
    details: Mapping[str, Any] = field(default_factory=dict)


def opinions_of_rewards(
    name: str, baseline: str, policy_rewards: Sequence[float | None], baseline_rewards: Sequence[float | None]
) -> Opinions:
    """Return preferences for the higher reward. A prompt without a reward on one side has no preference.

    `details` has the mean of both and of their difference, with its interval of 95% (normal, over prompts).
    """
    known = [
        number for number, pair in enumerate(zip(policy_rewards, baseline_rewards, strict=True)) if None not in pair
    ]
    after = [float(policy_rewards[number] or 0.0) for number in known]
    before = [float(baseline_rewards[number] or 0.0) for number in known]
    preferences: list[float | None] = [None] * len(policy_rewards)
    if not known:
        return Opinions(REWARD, name, baseline, preferences)
    for number, preference in zip(known, preferences_of(before, after), strict=True):
        preferences[number] = preference
    details = {
        "policy_reward": asdict(summarize(after)),
        "baseline_reward": asdict(summarize(before)),
        "difference": asdict(summarize([late - early for early, late in zip(before, after, strict=True)])),
    }
    return Opinions(REWARD, name, baseline, preferences, details)


def result_of(
    opinions: Opinions, policy_texts: Sequence[str], baseline_texts: Sequence[str], *, seed: int = 0
) -> dict[str, Any]:
    """Return the win rate, and that at equal length in characters, as JSON; both None where there is no answer."""
    rows = [number for number, each in enumerate(opinions.preferences) if each is not None]
    known = [each for each in opinions.preferences if each is not None]
    found: dict[str, Any] = {
        "baseline": opinions.baseline,
        "by": opinions.by,
        "name": opinions.name,
        "n": len(known),
        "unanswered": len(opinions.preferences) - len(known),
        "win_rate": None,
        "length_controlled": None,
    }
    if known:
        lengths = [[len(texts[number]) for number in rows] for texts in (policy_texts, baseline_texts)]
        found["win_rate"] = asdict(preference_rate(known))
        found["length_controlled"] = asdict(length_controlled_win_rate(known, *lengths, seed=seed))
    return {**found, **opinions.details}


def in_words(result: Mapping[str, Any]) -> str:
    """Return a win rate of `result_of` as a sentence."""
    wins = WinRate(**result["win_rate"])
    who = {REWARD: f"the reward {result['name']}", JUDGE: f"the judge {result['name']}"}.get(result["by"], "people")
    verb = "prefer" if result["by"] == PEOPLE else "prefers"
    equal = result.get("equal_completions")
    ties = f" ({equal} with equal completions, which count half)" if equal else ""
    return (
        f"On {wins.n} held-out prompts{ties}, {who} {verb} the policy's completion to that of {result['baseline']}"
        f" {wins.rate:.0%} of the time (95% interval {wins.low:.0%} to {wins.high:.0%})."
    )
