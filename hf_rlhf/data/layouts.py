"""The layout of a set, and its rows read by it.

Every stage asks this one detector, so that all of them take a file for the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hf_rlhf.data.dialogues import (
    MalformedDialogue,
    Pair,
    asks,
    before_answer,
    parse_hh,
    require_question,
    split_dialogues,
    with_question,
)
from hf_rlhf.data.public_formats import LABELS, find_format, format_columns
from hf_rlhf.data.rows import read_columns

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_rlhf.types import Prompt

HH = "HH dialogues"
TEXT = "text, explicit prompt"
CONVERSATIONAL = "conversational, explicit prompt"
IMPLICIT_CONVERSATIONAL = "conversational, implicit prompt"
IMPLICIT_TEXT = "text, implicit prompt"

PREFERENCE_COLUMNS = ("prompt", "chosen", "rejected", "margin")
LAYOUT_COLUMNS = ("prompt", "chosen", "rejected", "completion", "messages", "text")
_TEXTS = (("messages",), ("prompt", "completion"), ("text",))  # as trl's SFTTrainer takes them
_SAMPLED_ROWS = 1000


@dataclass(frozen=True)
class Layout:
    """The use of the rows for reward models (`pairs`), for sft and PPO-ptx (`texts`), and for PPO (`prompts`).

    `pairs` says how they are written, `texts` names the columns, and both are empty where the set has none. `prompts`
    are the column of that name, or the messages before the answers of `pairs` or of `messages`: there a prompt that is
    text only says which message is the question, so that every stage has the same messages before the answer. Where
    most `messages` do not ask it, the column `prompt` is the prompt, whatever stands beside it. Rows of a `public`
    format have prompts once they are converted.
    """

    pairs: str
    texts: tuple[str, ...]
    prompts: Literal["prompt", "pairs", "messages", "public", ""]
    prompt: Literal["messages", "text", ""]  # what the column of that name holds
    public: str = ""  # the name of the public format, see `public_formats.py`

    def __str__(self) -> str:
        held = [self.public] if self.public else [f"preference pairs ({self.pairs})"] if self.pairs else []
        held += [self.texts_name] if self.texts else []
        return " and ".join(held) or (f"prompts ({self.prompt})" if self.prompt else "no layout that is known")

    @property
    def sentence(self) -> str:
        """The sentences that an error says of a set that a stage cannot use, and which can; nothing where none can."""
        stages = {"reward": self.public or self.pairs, "sft": self.texts, "ppo": self.prompt}
        fitting = next((stage for stage, holds in stages.items() if holds), None)
        return f" The set holds {self}. `hf-rlhf {fitting}` trains on it." if fitting else ""

    @property
    def texts_name(self) -> str:
        """The rows as sft takes them."""
        if len(self.texts) == 1:
            return self.texts[0]
        return f"prompt and completion, {self.prompt}"

    @property
    def prompts_name(self) -> str:
        """The rows as PPO takes them."""
        names = {"pairs": "messages before the answers", "messages": "messages before the last answer"}
        return {**names, "public": self.public}.get(self.prompts, self.prompt)

    def taken_for(self, use: str) -> str:
        """Return what a stage takes the set for, and what else the set holds."""
        held = str(self)
        known = use == self.public or held in (use, f"preference pairs ({use})", f"prompts ({use})")
        return use if known else f"{use}; the set holds {held}"


def layout_of(dataset: Dataset, *, source: str = "the set") -> Layout:
    """Return the layout that most rows have; of a large set, a sample spread evenly over it is read."""
    names = [name for name in LAYOUT_COLUMNS if name in dataset.column_names]
    names = list(dict.fromkeys([*names, *format_columns(dataset.column_names)]))
    step = max(len(dataset) / _SAMPLED_ROWS, 1)
    rows = [int(number * step) for number in range(min(len(dataset), _SAMPLED_ROWS))]
    return find_layout(read_columns(dataset.select(rows), names, source=source) if names else {})


def find_layout(columns: Mapping[str, Sequence[Any]]) -> Layout:
    """Return the layout of some rows, by the first values that are not None and by how dialogues begin."""
    found = {name for name in LAYOUT_COLUMNS if name in columns}
    if found != {"messages"} and _kind(columns.get("messages", ())) != "messages":
        found -= {"messages"}
    prompt = _kind(columns.get("prompt", ()))
    pairs = _pairs(columns, prompt) if {"chosen", "rejected"} <= found else ""
    texts = next((names for names in _TEXTS if found.issuperset(names)), ())
    if not pairs and "messages" not in found and (public := find_format(columns)):
        return Layout("", texts, "prompt" if public == LABELS else "public", prompt, public)
    in_messages = "messages" in found and not (
        prompt == "text" and not _is_asked(columns["prompt"], columns["messages"])
    )
    if prompt == "messages" or (prompt and pairs != IMPLICIT_CONVERSATIONAL and not in_messages):
        return Layout(pairs, texts, "prompt", prompt)
    if pairs == IMPLICIT_CONVERSATIONAL or (pairs and "prompt" not in found):
        return Layout(pairs, texts, "pairs", prompt)
    return Layout(pairs, texts, "messages" if "messages" in found else "prompt" if "prompt" in found else "", prompt)


def _pairs(columns: Mapping[str, Sequence[Any]], prompt: str) -> str:
    chosen = [value for value in columns["chosen"] if value is not None]
    if _kind(chosen) == "messages":
        return CONVERSATIONAL if prompt == "messages" else IMPLICIT_CONVERSATIONAL
    if "prompt" in columns:
        return TEXT
    dialogues = sum(isinstance(value, str) and value.lstrip().startswith("Human:") for value in chosen)
    return HH if dialogues > len(chosen) / 2 else IMPLICIT_TEXT


def _is_asked(prompts: Sequence[Any], dialogues: Sequence[Any]) -> bool:
    """Return whether in most rows with both the text of the prompt is a message of the user."""
    rows = [row for row in zip(prompts, dialogues, strict=True) if isinstance(row[0], str) and row[1] is not None]
    return sum(asks(messages, prompt) for prompt, messages in rows) > len(rows) / 2


def _kind(values: Sequence[Any]) -> Literal["messages", "text", ""]:
    first = next((value for value in values if value is not None), None)
    return "messages" if isinstance(first, list) else "" if first is None else "text"


# --- rows by their layout -----------------------------------------------------------------------------------------


def split_row(row: Mapping[str, Any], layout: str) -> Pair:
    """Split a checked row into a pair. Raises MalformedDialogue when whole dialogues cannot be split."""
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if layout == HH:
        pair = split_dialogues(parse_hh(chosen), parse_hh(rejected))
        if max(len(pair.chosen), len(pair.rejected)) > 1:
            raise MalformedDialogue("the dialogues part before the last answer")
        return pair
    if layout == IMPLICIT_CONVERSATIONAL:
        if not isinstance(prompt, str):
            return split_dialogues(chosen, rejected)
        pair = split_dialogues(with_question(chosen, prompt), with_question(rejected, prompt))
        require_question(pair.prompt, prompt)
        return pair
    return Pair(prompt, chosen, rejected)


def prompt_columns(layout: Layout, found: Sequence[str]) -> list[str]:
    """Return the columns that prompts are made of."""
    names = {"pairs": PREFERENCE_COLUMNS, "messages": ("prompt", "messages")}.get(layout.prompts, ("prompt",))
    return [name for name in names if name in found]


def prompt_of(row: Mapping[str, Any], *, prompts: str, pairs: str = "") -> Prompt | None:
    """Return the prompt of a checked row, by what `Layout` says. Raises MalformedDialogue where it cannot be split."""
    if prompts == "pairs":
        return split_row(row, pairs).prompt
    return before_answer(row["messages"], row.get("prompt")) if prompts == "messages" else row["prompt"]
