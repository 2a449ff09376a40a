"""The files of AI feedback: demonstrations for SFT, preferences for a reward model, and a report."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_rlhf.checkpoint.manifest import flush
from hf_rlhf.feedback.ai.steps import Judged, Revised
from hf_rlhf.judges.comparison import agreement, corrected_for_position
from hf_rlhf.records import write_json_lines
from hf_rlhf.types import Message

SFT_FILE, PREFERENCES_FILE, REPORT_FILE = "sft.jsonl", "preferences.jsonl", "ai_feedback.json"
SKIP, AVERAGE = "skip", "average"


def corrected(judged: Sequence[Judged]) -> list[Judged]:
    """Take the judge's preference for a place out of its answers, for each principle by itself."""
    found = list(judged)
    for name in {each.principle.name for each in judged}:
        numbers = [number for number, each in enumerate(judged) if each.principle.name == name]
        comparisons = corrected_for_position([judged[number].comparison for number in numbers])
        for number, comparison in zip(numbers, comparisons, strict=True):
            found[number] = replace(judged[number], comparison=comparison)
    return found


def sft_rows(
    prompts: Sequence[list[Message]], revised: Iterable[Revised], *, model: str, keep_unfinished: bool
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Return demonstrations in TRL's format, and how many revisions are omitted for which reason."""
    rows, left_out = [], Counter()
    for each in revised:
        if not each.revision.text:
            left_out["empty"] += 1
        elif not each.revision.finished and not keep_unfinished:
            left_out["cut off at max_completion_length"] += 1
        else:
            rows.append(
                {
                    "prompt": prompts[each.row],
                    "completion": _reply(each.revision.text),
                    "model": model,
                    "principle": each.principle.name,
                    "critique": each.critique,
                    "original": each.original.text,
                }
            )
    return rows, left_out


def preference_rows(
    prompts: Sequence[list[Message]], judged: Iterable[Judged], *, judge: str, when_orders_disagree: str
) -> list[dict[str, Any]]:
    """Return the preferences in TRL's format, with `confidence`: how much more probable the chosen one is, from 0 to 1.

    It is no `margin`, which the loss of a reward model would take: probabilities are not on the scale of rewards, and a
    judge that gives words has a confidence of 1 in every pair.

    A pair whose two orders name different replies is a tie, which the format has not: it is omitted (`skip`), or the
    mean over both orders decides (`average`).
    """
    rows = []
    for each in judged:
        comparison = each.comparison
        if not comparison.confidence or (not comparison.survived_swap and when_orders_disagree == SKIP):
            continue
        first_is_better = (comparison.probability or 0.0) > 0.5
        chosen, rejected = (each.first, each.second) if first_is_better else (each.second, each.first)
        rows.append(
            {
                "prompt": prompts[each.row],
                "chosen": _reply(chosen),
                "rejected": _reply(rejected),
                "confidence": comparison.confidence,
                "annotator": "ai",
                "judge": judge,
                "principle": each.principle.name,
                "survived_swap": comparison.survived_swap,
            }
        )
    return rows


def report_of(judged: Sequence[Judged]) -> dict[str, Any]:
    """Return how far the judge agrees with itself: over all pairs, and by principle."""
    names = sorted({each.principle.name for each in judged})
    by_principle = {
        name: agreement([each.comparison for each in judged if each.principle.name == name]).row() for name in names
    }
    return {"judge_agreement": agreement([each.comparison for each in judged]).row(), "by_principle": by_principle}


def write_results(
    folder: Path,
    demonstrations: Sequence[Mapping[str, Any]],
    preferences: Sequence[Mapping[str, Any]],
    report: Mapping[str, Any],
) -> None:
    """Write the three files, each in place of what it held, whole or not at all. A file without rows is not written."""
    for name, rows in ((SFT_FILE, demonstrations), (PREFERENCES_FILE, preferences)):
        if rows:
            scratch = folder / f".{name}"
            write_json_lines(scratch, rows)
            _put_in_place(scratch, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    scratch = folder / f".{REPORT_FILE}"
    scratch.write_text(
        json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="backslashreplace"
    )
    _put_in_place(scratch, folder / REPORT_FILE)
    flush(folder)


def _put_in_place(scratch: Path, file: Path) -> None:
    flush(scratch)
    os.replace(scratch, file)


def _reply(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]
