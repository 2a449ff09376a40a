"""Questions to annotators: which completions of a prompt to ask about next."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from hf_rlhf.errors import InputError
from hf_rlhf.feedback.forms import Form, completions_of_form
from hf_rlhf.ops.preference import disagreement

RANDOM, DISAGREEMENT, UNCERTAINTY = "random", "disagreement", "uncertainty"
CHOICES = (RANDOM, DISAGREEMENT, UNCERTAINTY)


@dataclass(frozen=True, slots=True)
class Question:
    """A task that could be asked: some completions of a prompt, by their numbers among all candidates."""

    prompt: int
    candidates: tuple[int, ...]


def possible_questions(texts: Sequence[Sequence[str]], form: Form) -> list[Question]:
    """Return every question that a form can ask about the candidates of some prompts.

    A pairwise form asks about two, a form of one completion about each, any other about all of a prompt at once.
    Candidates of the same text are one, and there is no question about one without any text.

    Args:
        texts: of the candidates of each prompt. They are numbered through, over all prompts.
        form: of the questions.
    """
    low, high = completions_of_form(form)
    questions, number = [], 0
    for prompt, group in enumerate(texts):
        first = {text: number + place for place, text in reversed(list(enumerate(group))) if text.strip()}
        distinct = sorted(first.values())
        number += len(group)
        size = min(high, len(distinct))
        if size >= low:
            chosen = itertools.combinations(distinct, size) if high <= 2 else [tuple(distinct[:size])]
            questions += [Question(prompt, each) for each in chosen]
    return questions


def choose_questions(
    questions: Sequence[Question], count: int, how: str, *, seed: int, rewards: Tensor | None = None
) -> list[Question]:
    """Return `count` of the questions, or all if there are fewer; the same for the same seed and rewards.

    - random: drawn without replacement.
    - disagreement: first where the members of an ensemble disagree most about which completion is better (the standard
      deviation over members of the difference of two rewards, the mean over all pairs of a question).
    - uncertainty: first where the reward model knows least: |sigmoid(r_a - r_b) - 1/2| is smallest, by the mean of
      members.

    Args:
        questions: see `possible_questions`.
        count: most to return.
        how: one of `CHOICES`.
        seed: of the draw, and of the order of questions that score the same.
        rewards: `(candidates, members)`, not needed for `random`.

    Raises `InputError` for another choice, and for disagreement of fewer than two members.
    """
    require_choice(how, members=None if rewards is None else rewards.shape[1])
    order = list(questions)
    random.Random(f"{seed}/questions").shuffle(order)
    if how == RANDOM:
        return order[:count]
    assert rewards is not None
    score = _disagreement if how == DISAGREEMENT else _uncertainty
    scores = {question: score(rewards[list(question.candidates)].double()) for question in order}
    return sorted(order, key=lambda question: -scores[question])[:count]


def require_choice(how: str, *, members: int | None = None) -> None:
    """Raise `InputError` for a choice that does not exist, or that so many reward models cannot make.

    `members` is None where there are no rewards.
    """
    if how not in CHOICES:
        raise InputError(f"choose={how} is invalid: it must be one of {', '.join(CHOICES)}.")
    needed = {RANDOM: 0, UNCERTAINTY: 1, DISAGREEMENT: 2}[how]
    if (members or 0) < needed:
        raise InputError(
            f"choose={how} is invalid with {members or 0} reward models: it needs {needed}. Set num_reward_models to"
            f" {needed} or more, or choose to {RANDOM}."
        )


def _disagreement(rewards: Tensor) -> float:
    """Return by how much members differ about the completions of a question; rewards `(completions, members)`."""
    if len(rewards) == 1:
        return disagreement(rewards).item()
    differences = torch.stack([a - b for a, b in itertools.combinations(rewards, 2)])
    return disagreement(differences).mean().item()


def _uncertainty(rewards: Tensor) -> float:
    """Return how near to 1/2 the probabilities of a question's preferences are, from -1/2 to 0."""
    means = rewards.mean(dim=1)
    if len(means) == 1:
        return -abs(means[0].item())
    return fmean(-abs(torch.sigmoid(a - b).item() - 0.5) for a, b in itertools.combinations(means, 2))
