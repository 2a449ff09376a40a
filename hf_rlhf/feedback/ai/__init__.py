"""Feedback by a model: critiques, revisions and preferences by principles (Constitutional AI)."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.feedback.ai.principles import Principle, load_principles
    from hf_rlhf.feedback.ai.steps import FeedbackSteps
    from hf_rlhf.writers import EndpointWriter, ModelWriter

_HOMES = {
    "EndpointWriter": "hf_rlhf.writers",
    "FeedbackSteps": "hf_rlhf.feedback.ai.steps",
    "ModelWriter": "hf_rlhf.writers",
    "Principle": "hf_rlhf.feedback.ai.principles",
    "load_principles": "hf_rlhf.feedback.ai.principles",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = ["EndpointWriter", "FeedbackSteps", "ModelWriter", "Principle", "load_principles"]
