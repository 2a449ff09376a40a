"""Feedback of people, rules and models: forms, tasks, and the store of what was answered."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.feedback.annotators import Annotator, JudgeAnnotator, annotate
    from hf_rlhf.feedback.forms import Field, Form, InvalidAnswer
    from hf_rlhf.feedback.rules import RuleAnnotator, panel
    from hf_rlhf.feedback.similarity import similarity_annotator
    from hf_rlhf.feedback.store import Event, FeedbackStore, Progress
    from hf_rlhf.feedback.tasks import Task

_HOMES = {
    "Annotator": "hf_rlhf.feedback.annotators",
    "Event": "hf_rlhf.feedback.store",
    "FeedbackStore": "hf_rlhf.feedback.store",
    "Field": "hf_rlhf.feedback.forms",
    "Form": "hf_rlhf.feedback.forms",
    "InvalidAnswer": "hf_rlhf.feedback.forms",
    "JudgeAnnotator": "hf_rlhf.feedback.annotators",
    "Progress": "hf_rlhf.feedback.store",
    "RuleAnnotator": "hf_rlhf.feedback.rules",
    "Task": "hf_rlhf.feedback.tasks",
    "annotate": "hf_rlhf.feedback.annotators",
    "panel": "hf_rlhf.feedback.rules",
    "similarity_annotator": "hf_rlhf.feedback.similarity",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = [
    "Annotator",
    "Event",
    "FeedbackStore",
    "Field",
    "Form",
    "InvalidAnswer",
    "JudgeAnnotator",
    "Progress",
    "RuleAnnotator",
    "Task",
    "annotate",
    "panel",
    "similarity_annotator",
]
