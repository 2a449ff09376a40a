"""Settings, store and annotators that the steps of a run of rounds share."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hf_rlhf.feedback.annotators import Annotator
from hf_rlhf.feedback.forms import Form
from hf_rlhf.feedback.store import FeedbackStore
from hf_rlhf.recipes.arguments import ModelArguments
from hf_rlhf.rounds.arguments import RoundsArguments


class Loop(NamedTuple):
    """Everything that the steps of a run share."""

    args: RoundsArguments
    model: ModelArguments
    root: Path
    store: FeedbackStore
    form: Form
    annotators: Sequence[Annotator]  # none where people answer
