"""Judges: which of two completions is better, or how good one is, by a server's model or one that is loaded here."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.judges.base import Judge
    from hf_rlhf.judges.comparison import Agreement, Comparison, agreement, corrected_for_position
    from hf_rlhf.judges.endpoint import EndpointJudge
    from hf_rlhf.judges.local import ModelJudge

_HOMES = {
    "Agreement": "hf_rlhf.judges.comparison",
    "Comparison": "hf_rlhf.judges.comparison",
    "EndpointJudge": "hf_rlhf.judges.endpoint",
    "Judge": "hf_rlhf.judges.base",
    "ModelJudge": "hf_rlhf.judges.local",
    "agreement": "hf_rlhf.judges.comparison",
    "corrected_for_position": "hf_rlhf.judges.comparison",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = ["Agreement", "Comparison", "EndpointJudge", "Judge", "ModelJudge", "agreement", "corrected_for_position"]
