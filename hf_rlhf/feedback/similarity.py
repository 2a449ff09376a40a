"""Semantic similarity as feedback: completions that mean the same as a person's reference are rated high."""

from functools import cached_property

from hf_rlhf.feedback.rules import RuleAnnotator
from hf_rlhf.feedback.tasks import Task
from hf_rlhf.rewards.similarity import Similarity


class SimilarityRating:
    """The rating of a completion by its similarity to a human reference, from 0 to 1: the cosine, and 0 below 0.

    It is blind to length, negation and truth, and a copy of the reference gets the best rating. So it measures and
    mixes well, and makes a poor only reward.

    Args:
        column: of the task, with a reference or a list of them, of which the closest counts. A task without one has no
            rating.
        model: of the embeddings; see `Similarity`.
    """

    def __init__(self, *, column: str = "reference", model: str | None = None):
        self.column, self.model = column, model
        self._last: tuple[str, list[float | None]] = "", []

    @cached_property
    def similarity(self) -> Similarity:
        """The reward that measures it; its model is loaded when it is first asked."""
        return Similarity(column=self.column, model=self.model)

    def __call__(self, task: Task, number: int) -> float | None:
        """Return the rating of a completion; see `Rate`."""
        if task.columns.get(self.column) is None:
            return None
        if self._last[0] != task.id:
            columns = {self.column: [task.columns[self.column]] * len(task.completions)}
            found = self.similarity([task.prompt] * len(task.completions), task.texts, **columns)
            self._last = task.id, [None if each is None else max(each, 0.0) for each in found]
        return self._last[1][number]


def similarity_annotator(
    *, column: str = "reference", model: str | None = None, tie_margin: float = 0.02
) -> RuleAnnotator:
    """Return the rule that prefers what is closer to the reference; see `SimilarityRating`."""
    return RuleAnnotator(SimilarityRating(column=column, model=model), name="similarity", tie_margin=tie_margin)
