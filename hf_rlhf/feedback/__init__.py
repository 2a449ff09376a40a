"""Feedback of people, rules and models: forms, tasks, and the store of what was answered."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.feedback.forms import Field, Form, InvalidAnswer
    from hf_rlhf.feedback.store import Event, FeedbackStore, Progress
    from hf_rlhf.feedback.tasks import Task

_HOMES = {
    "Event": "hf_rlhf.feedback.store",
    "FeedbackStore": "hf_rlhf.feedback.store",
    "Field": "hf_rlhf.feedback.forms",
    "Form": "hf_rlhf.feedback.forms",
    "InvalidAnswer": "hf_rlhf.feedback.forms",
    "Progress": "hf_rlhf.feedback.store",
    "Task": "hf_rlhf.feedback.tasks",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = ["Event", "FeedbackStore", "Field", "Form", "InvalidAnswer", "Progress", "Task"]
