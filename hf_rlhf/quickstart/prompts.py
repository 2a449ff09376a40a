"""The prompts of the quickstart: short everyday messages, written for this project."""

from __future__ import annotations

import json
from importlib.resources import files


def quickstart_prompts() -> dict[str, list[str]]:
    """Return the prompts of each split, in file order: `{"train": [...], "test": [...]}`.

    Every topic has messages in both splits and no message is in both, so the test split asks about familiar themes
    in words that training never saw.
    """
    text = (files("hf_rlhf") / "quickstart" / "prompts.jsonl").read_text(encoding="utf-8")
    prompts: dict[str, list[str]] = {"train": [], "test": []}
    for line in text.splitlines():
        row = json.loads(line)
        prompts[row["split"]].append(row["prompt"])
    return prompts
