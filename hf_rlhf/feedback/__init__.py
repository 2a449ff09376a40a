"""Feedback by a model: critiques, revisions and preferences by principles (Constitutional AI)."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.feedback.principles import Principle, load_principles
    from hf_rlhf.feedback.steps import FeedbackSteps
    from hf_rlhf.feedback.writers import EndpointWriter, ModelWriter

_HOMES = {
    "EndpointWriter": "hf_rlhf.feedback.writers",
    "FeedbackSteps": "hf_rlhf.feedback.steps",
    "ModelWriter": "hf_rlhf.feedback.writers",
    "Principle": "hf_rlhf.feedback.principles",
    "load_principles": "hf_rlhf.feedback.principles",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = ["EndpointWriter", "FeedbackSteps", "ModelWriter", "Principle", "load_principles"]
