"""The report card of a reward: its figures, its verdict, and the files that they are written to."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_rlhf.credentials import hide_tokens
from hf_rlhf.evaluation.report_card.agreement import SIMILAR, Agreement, tables_of, verdicts_of
from hf_rlhf.evaluation.report_card.baselines import Baseline, Comparison, find_baselines
from hf_rlhf.evaluation.report_card.calibration import Calibration, LengthEffect, calibration_of, length_effect
from hf_rlhf.evaluation.report_card.distribution import Distribution, Scale, distribution_of, recommended_scale
from hf_rlhf.evaluation.report_card.probes import PROBE_ROWS, PROBES, ProbeResult, probed_rows, run_probe
from hf_rlhf.evaluation.report_card.rewardbench import Section, sections_of
from hf_rlhf.evaluation.report_card.scoring import ScoredPairs, length_function, score_pairs
from hf_rlhf.evaluation.report_card.texts import question_of, text_of
from hf_rlhf.evaluation.report_card.verdict import Findings, Verdict, judge
from hf_rlhf.evaluation.reward_model import Pairs
from hf_rlhf.progress import progress_of
from hf_rlhf.records import versions, write_whole
from hf_rlhf.rewards.contract import reward_name

CARD_FILE, PAGE_FILE = "report_card.json", "report_card.html"
_MISTAKES, _SHOWN = 10, 900  # characters of a text


@dataclass(frozen=True, slots=True)
class Skipped:
    """Pairs that were not scored: longer than `max_length`, refused by the chat template, or without a reward."""

    too_long: int
    refused: int
    unscored: int
    max_length: int | None

    @property
    def total(self) -> int:
        """All of them."""
        return self.too_long + self.refused + self.unscored


@dataclass(frozen=True, slots=True)
class Mistake:
    """A pair whose rejected answer has the higher reward."""

    question: str
    chosen: str
    rejected: str
    chosen_reward: float
    rejected_reward: float


@dataclass(frozen=True, slots=True)
class ReportCard:
    """Everything that was measured of a reward on a set of pairs. See the classes of its fields for each figure.

    `tables` has the accuracy by group: `length_ratio`, `length`, and `margin`, `source` and `subset` where the set has
    these columns. `weights` are the sha256 digests of the model's files that were measured.
    """

    model: str
    dataset: str
    verdict: Verdict
    accuracy: Agreement
    mean_margin: float
    baselines: list[Baseline]
    best_baseline: Comparison
    tables: dict[str, list[Agreement]]
    sections: list[Section]
    calibration: Calibration
    length: LengthEffect
    probes: list[ProbeResult]
    skipped: Skipped
    rewards: Distribution
    scale: Scale
    mistakes: list[Mistake]
    seed: int
    weights: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Return the numbers of `reward_accuracy`."""
        return {
            "eval_rows": float(self.accuracy.n),
            "eval_accuracy": self.accuracy.accuracy,
            "eval_accuracy_low": self.accuracy.low,
            "eval_accuracy_high": self.accuracy.high,
            "eval_margin": self.mean_margin,
        }

    def write(self, folder: str | Path) -> Path:
        """Write report_card.json and report_card.html to `folder`, each whole or not at all; return the page's path."""
        from hf_rlhf.evaluation.report_card.page import page_of

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        page = page_of(self)
        write_whole(folder / CARD_FILE, hide_tokens(text))
        return write_whole(folder / PAGE_FILE, hide_tokens(page))


def make_report_card(
    reward: Callable[..., Any],
    pairs: Pairs,
    *,
    train: Pairs | None = None,
    model: str | None = None,
    dataset: str = "the pairs",
    max_length: int | None = None,
    skipped_before: int = 0,
    probe_rows: int = PROBE_ROWS,
    weights: Mapping[str, str] | None = None,
    seed: int = 0,
) -> ReportCard:
    """Measure a reward on pairs and return its report card.

    Args:
        reward: any function by TRL's contract, such as a `LearnedReward`. Token counts are words for one without a
            tokenizer.
        pairs: preferences that it was not trained on.
        train: the pairs that it was trained on, from which the bag of words learns; without them it is cross-validated.
        model: its name on the card.
        dataset: the name of the pairs on the card.
        max_length: tokens above which a pair is skipped and counted, besides those that the reward cannot take.
        skipped_before: pairs that the caller has skipped for their length, to be counted.
        probe_rows: answers that each probe damages; 0 runs no probe.
        weights: digests by `weights_of` of the model that was measured.
        seed: of the probes.

    Raises `InputError` when no pair can be scored, and for what is no finite number.
    """
    length, unit = length_function(reward)
    limits = [most for most in (max_length, getattr(reward, "max_length", None)) if most is not None]
    limit = min(limits, default=None)
    rows = min(probe_rows, len(pairs.prompts))
    work = 2 * len(pairs.prompts) + len(PROBES) * rows
    with progress_of(work + work // 10, "report card") as advance:  # a tenth for the rules, which learn words
        scored = score_pairs(reward, pairs, length, limit, advance)
        rewards = distribution_of(scored.chosen, scored.rejected)
        drawn = probed_rows(len(scored.chosen), rows, seed)
        probes = [
            run_probe(probe, reward, scored, drawn, length, limit, rewards.std, seed, advance)
            for probe in (PROBES if drawn else ())
        ]
        skipped = Skipped(scored.too_long + skipped_before, scored.refused, scored.unscored, limit)
        figures = _figures(scored, unit, train, probes, skipped, rewards.std)
    return ReportCard(
        model=model or reward_name(reward),
        dataset=dataset,
        probes=probes,
        skipped=skipped,
        rewards=rewards,
        scale=recommended_scale(rewards),
        seed=seed,
        weights=dict(weights or {}),
        versions=versions(),
        **figures,
    )


def _figures(
    scored: ScoredPairs, unit: str, train: Pairs | None, probes: list[ProbeResult], skipped: Skipped, std: float
) -> dict[str, Any]:
    """Return the fields of the card that are computed from the rewards of both answers, and the verdict."""
    verdicts = verdicts_of(scored)
    accuracy, tables = verdicts.agreement("all pairs"), tables_of(scored, verdicts, unit)
    baselines, best = find_baselines(scored, unit, train, verdicts.reward)
    differences = [chosen - rejected for chosen, rejected in zip(scored.chosen, scored.rejected, strict=True)]
    calibration, effect = calibration_of(differences), length_effect(scored, unit)
    found = Findings(
        accuracy=accuracy,
        similar=next((group for group in tables["length_ratio"] if group.name == SIMILAR), None),
        best=best,
        length=effect,
        calibration=calibration,
        probes=probes,
        skipped=skipped.total / (skipped.total + accuracy.n),
        std=std,
    )
    return {
        "verdict": judge(found),
        "accuracy": accuracy,
        "mean_margin": sum(differences) / len(differences),
        "baselines": baselines,
        "best_baseline": best,
        "tables": tables,
        "sections": sections_of(tables.get("subset", ())),
        "calibration": calibration,
        "length": effect,
        "mistakes": _worst(scored, differences),
    }


def _worst(scored: ScoredPairs, differences: list[float]) -> list[Mistake]:
    worst = sorted(range(len(differences)), key=lambda row: differences[row])[:_MISTAKES]
    pairs = scored.pairs
    return [
        Mistake(
            question=_shown(question_of(pairs.prompts[row])),
            chosen=_shown(text_of(pairs.chosen[row])),
            rejected=_shown(text_of(pairs.rejected[row])),
            chosen_reward=scored.chosen[row],
            rejected_reward=scored.rejected[row],
        )
        for row in worst
        if differences[row] < 0
    ]


def _shown(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
