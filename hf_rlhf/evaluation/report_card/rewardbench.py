"""RewardBench's subsets (Lambert et al. 2024, arXiv 2403.13787) and the averages over its sections."""

from collections.abc import Sequence
from dataclasses import dataclass

from hf_rlhf.evaluation.report_card.agreement import Agreement

SECTIONS = {
    "Chat": {
        "alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95, "mt-bench-easy": 28, "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134, "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100, "refusals-offensive": 100, "xstest-should-refuse": 250, "xstest-should-respond": 154,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984, "hep-cpp": 164, "hep-go": 164, "hep-java": 164, "hep-js": 164, "hep-python": 164,
        "hep-rust": 164,
    },
}  # fmt: skip
"""Weight of each subset in the average of its section: its number of pairs, but mathematics weighs as much as code."""


@dataclass(frozen=True, slots=True)
class Section:
    """Average accuracy of a section over the `found` ones of its `subsets`."""

    name: str
    accuracy: float
    found: int
    subsets: int


def sections_of(subsets: Sequence[Agreement]) -> list[Section]:
    """Return the weighted average of each section that has a subset here; with all four, also their mean."""
    by_name = {each.name: each.accuracy for each in subsets}
    sections = []
    for name, weights in SECTIONS.items():
        found = {subset: weight for subset, weight in weights.items() if subset in by_name}
        if found:
            total = sum(by_name[subset] * weight for subset, weight in found.items())
            sections.append(Section(name, total / sum(found.values()), len(found), len(weights)))
    if len(sections) == len(SECTIONS):
        mean = sum(section.accuracy for section in sections) / len(sections)
        found, subsets_in_all = (sum(getattr(each, name) for each in sections) for name in ("found", "subsets"))
        sections.append(Section("mean of the sections", mean, found, subsets_in_all))
    return sections
