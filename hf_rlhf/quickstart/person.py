"""Stage 2 with a person: the page asks which of two replies is better, and the answers are the preferences."""

import itertools
import random
from pathlib import Path
from typing import Any

from hf_rlhf.errors import InputError
from hf_rlhf.feedback.conversion import convert
from hf_rlhf.feedback.conversion.rules import ConversionRules
from hf_rlhf.feedback.forms import PAIRWISE, Form
from hf_rlhf.feedback.store import PERSON, FeedbackStore
from hf_rlhf.feedback.tasks import Task
from hf_rlhf.progress import say
from hf_rlhf.quickstart.arguments import CANDIDATES, QuickstartArguments
from hf_rlhf.quickstart.replies import as_messages
from hf_rlhf.records import read_json_lines, write_json_lines

ME, CHEERFUL = "me", "cheerful"
ANNOTATORS = (CHEERFUL, ME)
STORE_FILE = "feedback.db"
"""The answers of a person, in the quickstart's folder; no stage ever deletes it."""
HELD_OUT_SHARE = 0.2
"""Share of the judgments that the reward model is measured on and not trained on."""
FEWEST = 8
"""Preferences below which no reward model is trained."""
_GUIDELINES = """Which reply would you rather get? Go by your own taste: what you prefer is what the model learns.

Equal replies are a tie. Skip a message that you cannot judge. The model learns nothing from either."""


def ask_person(args: QuickstartArguments, root: Path, folder: Path) -> None:
    """Ask a person about pairs of replies on a page, and write what they prefer to train.jsonl and test.jsonl.

    The answers are in `root`/feedback.db as soon as they are given, so a run that was stopped asks nothing twice.

    Raises `InputError` for fewer preferences than a reward model takes; `RunStopped` after Ctrl+C.
    """
    from hf_rlhf.recipes.label import label

    tasks = {split: _tasks(args, root, split) for split in ("train", "test")}
    with FeedbackStore(root / STORE_FILE) as store:
        store.set("guidelines", _GUIDELINES)
        store.add_tasks([task for split in tasks.values() for task in split])
        asked = {task.id for split in tasks.values() for task in split}
        left = lambda: asked - {event.task for event in store.current(annotator=ME)}  # noqa: E731
        if waiting := left():
            say(f"     {len(waiting)} pairs of replies wait for your judgment. Answers are kept; Ctrl+C stops.")
            label(store, annotator=ME, until=lambda: not left(), port=args.port, open_browser=args.open)
        rows = convert(store, ConversionRules(margins=None, annotator_kinds=(PERSON,))).preferences
    for split, asked_of in tasks.items():
        prompts = [task.prompt for task in asked_of]
        kept = [_row(row) for row in rows if row["prompt"] in prompts]
        if len(kept) < (FEWEST if split == "train" else 1):
            raise InputError(
                f"{len(kept)} of {len(asked_of)} pairs of the {split} messages have a preference, too few to"
                f" {'train' if split == 'train' else 'measure'} a reward model. Raise judgments, and answer fewer ties"
            )
        write_json_lines(folder / f"{split}.jsonl", kept)


def _tasks(args: QuickstartArguments, root: Path, split: str) -> list[Task]:
    """Return the pairs to ask about, drawn by the seed: of each message one pair before a second one of any."""
    replies: dict[str, list[str]] = {}
    for row in read_json_lines(root / CANDIDATES / f"{split}.jsonl"):
        texts = replies.setdefault(row["prompt"], [])
        if row["completion"].strip() and row["completion"] not in texts:
            texts.append(row["completion"])
    rng = random.Random(f"{args.seed}/{split}")
    pairs = [
        (place, prompt, pair)
        for prompt, texts in replies.items()
        for place, pair in enumerate(
            rng.sample(list(itertools.combinations(texts, 2)), len(texts) * (len(texts) - 1) // 2)
        )
    ]
    rng.shuffle(pairs)
    pairs.sort(key=lambda pair: pair[0])
    held_out = max(round(args.judgments * HELD_OUT_SHARE), 1)
    count = args.judgments - held_out if split == "train" else held_out
    form = Form(PAIRWISE, strengths=1)
    return [
        Task(form, as_messages(prompt), tuple([_reply(text)] for text in pair)) for _, prompt, pair in pairs[:count]
    ]


def _reply(text: str) -> Any:
    return {"role": "assistant", "content": text}


def _row(preference: dict[str, Any]) -> dict[str, Any]:
    return {name: preference[name] for name in ("prompt", "chosen", "rejected")}
