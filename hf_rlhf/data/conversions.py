"""Rows of the public formats as one of two shapes: a pair, or completions with ratings. One function per format."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_rlhf.data.checks import margin_problem, messages_problem, prompt_problem, text_problem
from hf_rlhf.data.dialogues import MalformedDialogue, parse_hh
from hf_rlhf.data.public_formats import (
    ATTRIBUTES,
    LABELS,
    RANKINGS,
    RATED,
    RATINGS,
    SHP,
    STRENGTHS,
    SUMMARIES,
    label_problem,
)

if TYPE_CHECKING:
    from hf_rlhf.types import Message, Prompt

Row = Mapping[str, Any]

_HELPSTEER_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
_SHP_SPLIT = re.compile(r"_(train|validation|test)$")


class BadValue(ValueError):
    """A value of a row cannot be used; the message is the problem, `column` says where it stands."""

    def __init__(self, column: str, problem: str):
        super().__init__(problem)
        self.column = column


class Compared(NamedTuple):
    """Two answers to a prompt. `margin` says by how much the chosen one is better, None where nothing says it."""

    prompt: Prompt
    chosen: Prompt
    rejected: Prompt
    margin: float | None = None
    source: str | None = None


class Rated(NamedTuple):
    """Completions of one prompt with their ratings, of which a higher one is better."""

    prompt: Prompt
    completions: list[Prompt]
    ratings: list[float]
    source: str | None = None


class Reading(NamedTuple):
    """The way all rows of a set are read: as messages or as text, and with these weights of rated attributes."""

    messages: bool
    weights: Mapping[str, float]


# --- one function per format --------------------------------------------------------------------------------------


def from_shp(row: Row, reading: Reading) -> Compared:
    """Convert a row of SHP: a post and two comments, of which `labels` 1 prefers A and 0 prefers B.

    The margin is the logarithm of `score_ratio`, the votes of the better comment per vote of the other one.
    """
    history, a, b = (_text(row[name], name) for name in ("history", "human_ref_A", "human_ref_B"))
    label = row["labels"]
    if label not in (0, 1):
        raise BadValue("labels", f"{label!r} is neither 1 (A is preferred) nor 0 (B is)")
    if "score_A" in row and "score_B" in row:
        votes = [_number(row[name], name) for name in ("score_A", "score_B")]
        if votes[0] != votes[1] and (votes[0] > votes[1]) != bool(label):
            raise BadValue("labels", f"{label}, but score_A is {votes[0]:g} and score_B {votes[1]:g}")
    margin = None
    if "score_ratio" in row:
        ratio = _number(row["score_ratio"], "score_ratio")
        if ratio < 1:
            raise BadValue("score_ratio", f"{ratio:g} is below 1: it is the better score divided by the other")
        margin = math.log(ratio)
    source = _SHP_SPLIT.sub("", row["domain"]) if isinstance(row.get("domain"), str) else _source(row)
    chosen, rejected = (a, b) if label else (b, a)
    return Compared(_asked(history), _answered(chosen), _answered(rejected), margin, source)


def from_summaries(row: Row, reading: Reading) -> Compared:
    """Convert a comparison of two summaries; the prompt is that of the paper (Stiennon et al. 2020, appendix B).

    The summaries are text, which continues the prompt with a space.
    """
    info, summaries, choice = row["info"], row["summaries"], row["choice"]
    if not isinstance(info, Mapping):
        raise BadValue("info", f"{type(info).__name__} instead of a mapping with the post")
    if info.get("article"):
        prompt, source = f"Article:\n{info['article']}\n\nTL;DR:", "article"
    else:
        for key in ("subreddit", "title", "post"):
            if problem := text_problem(info.get(key)):
                raise BadValue("info", f'"{key}": {problem}')
        prompt = f"SUBREDDIT: r/{info['subreddit']}\n\nTITLE: {info['title']}\n\nPOST: {info['post']}\n\nTL;DR:"
        source = f"r/{info['subreddit']}"
    if not isinstance(summaries, list) or len(summaries) != 2:
        raise BadValue("summaries", "not a list of two summaries")
    if choice not in (0, 1):
        raise BadValue("choice", f"{choice!r} is neither 0 (the first summary is preferred) nor 1 (the second is)")
    texts = [_text(_key(each, "text", "summaries", number), "summaries") for number, each in enumerate(summaries)]
    spaced = [text if text[0].isspace() else f" {text}" for text in texts]
    return Compared(prompt, spaced[choice], spaced[1 - choice], None, source)


def from_ranking(row: Row, reading: Reading) -> Rated:
    """Convert a ranking such as Nectar's: `answers` with their `rank`, 1 the best. A rating is the negative rank."""
    prompt, answers = _hh_prompt(row["prompt"]), row["answers"]
    if not isinstance(answers, list) or len(answers) < 2:
        count = len(answers) if isinstance(answers, list) else "no"
        raise BadValue("answers", f"{count} answers, and a ranking needs two")
    texts = [_text(_key(each, "answer", "answers", number), "answers") for number, each in enumerate(answers)]
    ranks = [_number(_key(each, "rank", "answers", number), "answers") for number, each in enumerate(answers)]
    rank_of = dict(zip(texts, ranks, strict=True))
    if any(rank != rank_of[text] for text, rank in zip(texts, ranks, strict=True)):
        raise BadValue("answers", "the same answer has two ranks")
    return Rated(prompt, [_answered(text) for text in texts], [-rank for rank in ranks], _source(row))


def from_strengths(row: Row, reading: Reading) -> Rated:
    """Convert a row of HelpSteer2's preferences: -3 says that response 1 is much better, 3 that response 2 is."""
    answers = [_text(row[name], name) for name in ("response_1", "response_2")]
    strength = _number(row["preference_strength"], "preference_strength", -3, 3)
    return Rated(_helpsteer_prompt(row["prompt"]), list(map(_answered, answers)), [0.0, strength], _source(row))


def from_attributes(row: Row, reading: Reading) -> Rated:
    """Convert one rated response of HelpSteer; its rating is the weighted sum of attributes from 0 to 4."""
    rating = 0.0
    for name, weight in reading.weights.items():
        bounds = (0, 4) if name in ATTRIBUTES else ()
        rating += weight * _number(row[name], name, *bounds)
    answer = _answered(_text(row["response"], "response"))
    return Rated(_helpsteer_prompt(row["prompt"]), [answer], [rating], _source(row))


def from_label(row: Row, reading: Reading) -> Rated:
    """Convert one completion with a label, as for KTO: true (or 1) rates it 1, and false (or 0) rates it 0."""
    if problem := label_problem(row["label"]):
        raise BadValue("label", problem)
    prompt, completion = _as_read(row["prompt"], reading), _completion(row["completion"], "completion", reading)
    return Rated(prompt, [completion], [float(row["label"])], _source(row))


def from_rated(row: Row, reading: Reading) -> Rated:
    """Convert a prompt with `completions` and as many `ratings`, of which a higher one is better."""
    completions, ratings = row["completions"], row["ratings"]
    for name in ("completions", "ratings"):
        if not isinstance(row[name], list) or not row[name]:
            raise BadValue(name, "None" if row[name] is None else "empty" if row[name] == [] else "not a list")
    if len(completions) != len(ratings):
        raise BadValue("ratings", f"{len(ratings)} ratings of {len(completions)} completions")
    made = [_completion(each, "completions", reading) for each in completions]
    return Rated(_as_read(row["prompt"], reading), made, [_number(each, "ratings") for each in ratings], _source(row))


CONVERSIONS: Mapping[str, Callable[[Row, Reading], Compared | Rated]] = {
    SHP: from_shp,
    SUMMARIES: from_summaries,
    RANKINGS: from_ranking,
    STRENGTHS: from_strengths,
    RATINGS: from_attributes,
    LABELS: from_label,
    RATED: from_rated,
}


# --- values -------------------------------------------------------------------------------------------------------


def _text(value: Any, column: str) -> str:
    if problem := text_problem(value):
        raise BadValue(column, problem)
    return value


def _number(value: Any, column: str, low: float = -math.inf, high: float = math.inf) -> float:
    if problem := margin_problem(value):
        raise BadValue(column, problem)
    if not low <= value <= high:
        raise BadValue(column, f"{value:g} is not from {low:g} to {high:g}")
    return float(value)


def _key(value: Any, key: str, column: str, number: int) -> Any:
    if not isinstance(value, Mapping) or value.get(key) is None:
        raise BadValue(column, f'no "{key}" in number {number + 1}')
    return value[key]


def _source(row: Row) -> str | None:
    return source_name(row.get("source"))


def source_name(value: Any) -> str | None:
    """Return the name of a source that a row gives, as text or as a list of texts; None where it gives none."""
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    return value if isinstance(value, str) and value.strip() else None


def _asked(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _answered(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def _as_read(prompt: Any, reading: Reading) -> Prompt:
    asked = _asked(prompt) if reading.messages and isinstance(prompt, str) else prompt
    return _checked_prompt(asked, messages=reading.messages)


def _checked_prompt(prompt: Any, *, messages: bool) -> Prompt:
    if problem := prompt_problem(prompt, conversational=messages):
        raise BadValue("prompt", problem)
    return prompt


def _completion(value: Any, column: str, reading: Reading) -> Prompt:
    answered = _answered(value) if reading.messages and isinstance(value, str) else value
    if problem := messages_problem(answered) if reading.messages else text_problem(answered):
        raise BadValue(column, problem)
    return answered


def _hh_prompt(prompt: Any) -> Prompt:
    r"""Return the messages of "\n\nHuman: ...\n\nAssistant: ", and a question of any other text."""
    text = _text(prompt, "prompt") if not isinstance(prompt, list) else ""
    if not text.lstrip().startswith("Human:"):
        return _checked_prompt(_asked(text) if text else prompt, messages=True)
    try:
        messages = parse_hh(text)
    except MalformedDialogue as error:
        raise BadValue("prompt", str(error)) from error
    if messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
        messages.pop()
    return _checked_prompt(messages, messages=True)


def _helpsteer_prompt(prompt: Any) -> Prompt:
    """Return the messages of a text in which `<extra_id_1>User` and `<extra_id_1>Assistant` begin the later turns."""
    first, *turns = _HELPSTEER_TURN.split(_text(prompt, "prompt"))
    messages = _asked(first)
    for speaker, content in zip(turns[::2], turns[1::2], strict=True):
        messages.append({"role": "user" if speaker == "User" else "assistant", "content": content})
    return _checked_prompt(messages, messages=True)


def reads_messages(columns: Mapping[str, Sequence[Any]]) -> bool:
    """Return whether the first prompt or completion of a set is a list of messages: then all are read as messages."""
    for name in ("prompt", "completion", "completions"):
        first = next((value for value in columns.get(name, ()) if value is not None), None)
        first = first[0] if name == "completions" and isinstance(first, list) and first else first
        if isinstance(first, list):
            return True
    return False
