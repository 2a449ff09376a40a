"""Checks of rated groups before they are trained on: labels, and leaks between training and evaluation."""

from __future__ import annotations

from hf_rlhf.data.prepared import PreparedSet
from hf_rlhf.data.rows import fingerprint, list_rows, read_columns
from hf_rlhf.errors import InputError


def require_labels(prepared: PreparedSet) -> PreparedSet:
    """Return the set. Raises InputError for a rating that is no label, 0 or 1."""
    for row, ratings in enumerate(read_columns(prepared.dataset, ["ratings"])["ratings"]):
        if wrong := set(ratings) - {0, 1}:
            raise InputError(
                f"reward_loss=binary is invalid: {prepared.place(row)} of {prepared.report.source} has the rating"
                f" {wrong.pop()}, and labels are 0 or 1. Use regression, or mend the row."
            )
    return prepared


def check_no_rated_leak(train: PreparedSet, test: PreparedSet, *, source: str) -> int:
    """Count the prompts that both sets share. Raises InputError for a group that is in both."""
    ours, theirs = (read_columns(each.dataset, ["prompt", "completions"]) for each in (train, test))
    known = set(map(fingerprint, ours["prompt"], ours["completions"]))
    groups = list(map(fingerprint, theirs["prompt"], theirs["completions"]))
    if leaked := [row for row, group in enumerate(groups) if group in known]:
        raise InputError(
            f"{list_rows(list(map(test.place, leaked)))} of {len(groups)} groups of {source} are in the training set"
            " too, so the test would measure memory. Remove them from one of the two, or split by prompt"
        )
    return len(set(map(fingerprint, ours["prompt"])) & set(map(fingerprint, theirs["prompt"])))
