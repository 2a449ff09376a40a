"""The dtypes and the kind of machine of a checkpoint, and the warning of a resumed run whose own differ.

A run that resumes in another dtype is a different run from there on: its numbers differ, first by rounding and soon by
more.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hf_rlhf.checkpoint.manifest import MANIFEST_FILE
from hf_rlhf.errors import InputError
from hf_rlhf.models.machine import device_name
from hf_rlhf.models.precision import dtype_name

BASE, AUTOCAST = "base", "autocast"
"""Names among the dtypes; others are those of models besides."""


class Computation(NamedTuple):
    """Device and dtypes that a run computes with."""

    device: str  # its kind and name
    dtypes: Mapping[str, str]  # by role, the base first

    @classmethod
    def here(cls, device: torch.device, dtypes: Mapping[str, torch.dtype | str]) -> "Computation":
        """Return how a run on `device` computes."""
        names = {role: each if isinstance(each, str) else dtype_name(each) for role, each in dtypes.items()}
        return cls(device_name(device), names)

    @property
    def base(self) -> str | None:
        """The dtype of the base, as the flag has it."""
        return self.dtypes.get(BASE)

    def for_card(self) -> dict[str, str]:
        """Return what a model card states; what is unknown is omitted."""
        facts = {"dtype of the base": self.base, "device": self.device}
        return {name: known for name, known in facts.items() if known}

    def facts(self) -> dict[str, Any]:
        """Return what a manifest records."""
        return {"device": self.device, "dtypes": dict(self.dtypes)}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "Computation":
        """Make it from the `facts` of a manifest; earlier versions recorded none."""
        return cls(facts.get("device", ""), facts.get("dtypes", {}))


def require_same_dtypes(rank_dtypes: Sequence[Mapping[str, str]]) -> None:
    """Raise `InputError` where ranks compute in different dtypes, as `native` is on machines of several kinds."""
    roles = dict.fromkeys(role for dtypes in rank_dtypes for role in dtypes)  # in order, each once
    if several := [role for role in roles if len({dtypes.get(role) for dtypes in rank_dtypes}) > 1]:
        each = "; ".join(
            f"rank {rank}: {', '.join(f'{role} {name}' for role, name in dtypes.items())}"
            for rank, dtypes in enumerate(rank_dtypes)
        )
        raise InputError(
            f"the ranks would compute in several dtypes ({each}), since their machines differ in the dtypes that they"
            " multiply in hardware. Start all ranks on machines of one kind, or"
            f" {' and '.join(map(_same_dtype, several))}."
        )


def recorded_computation(checkpoint: str | Path) -> Computation:
    """Read how the run that wrote a verified checkpoint computed; earlier versions recorded no dtype."""
    facts = json.loads((Path(checkpoint) / MANIFEST_FILE).read_text(encoding="utf-8"))
    return Computation.from_facts(facts.get("computation", {}))


def difference(checkpoint: str | Path, now: Computation) -> str | None:
    """Describe what was before, what is now, and what to pass for the same dtypes; None where no dtype differs."""
    before = recorded_computation(checkpoint)
    changed = [role for role, name in before.dtypes.items() if now.dtypes.get(role, name) != name]
    if not changed:
        return None
    were, are = (", ".join(f"{role} {each.dtypes[role]}" for role in changed) for each in (before, now))
    machines = ("", "") if before.device == now.device else (f" on {before.device}", f", on {now.device},")
    fixes = [_previous_dtype(role, before.dtypes[role], now.dtypes[role]) for role in changed]
    return (
        f"{Path(checkpoint).name} was written{machines[0]} with {were}, and this run{machines[1]} has {are}. Its"
        f" numbers differ by rounding from here on. To compute as before: {'; '.join(fixes)}"
    )


def _previous_dtype(role: str, before: str, now: str) -> str:
    """Return what to pass so that a role with dtype `now` gets the dtype `before`."""
    if role == BASE:
        return f"--dtype {before}, or in Python a model loaded with dtype={before!r}"
    if role == AUTOCAST:
        flags = {name: before == name for name in ("bf16", "fp16") if name in (before, now)}
        return " ".join(f"--{name} {str(value).lower()}" for name, value in flags.items())
    return f"give the {role} as an object, loaded with dtype={before!r}"


def _same_dtype(role: str) -> str:
    """Return what to pass so that a role has one dtype on all ranks."""
    if role == BASE:
        return "set dtype"
    if role == AUTOCAST:
        return "set bf16"
    return f"give the {role} as an object, loaded in one dtype"
