"""The diagnosis: all symptoms of a run, in its folder or while it is under way."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hf_rlhf.evaluation.doctor.policy import POLICY_SYMPTOMS
from hf_rlhf.evaluation.doctor.record import DOCTOR_FILE, Finding, RunRecord
from hf_rlhf.evaluation.doctor.rewards import REWARD_SYMPTOMS
from hf_rlhf.records import write_whole

SYMPTOMS = {symptom.__name__: symptom for symptom in (*POLICY_SYMPTOMS, *REWARD_SYMPTOMS)}

FINDINGS = ("padding", "end_of_turn", *SYMPTOMS)
"""The names of all findings: those before the first update, and those of iterations."""


def diagnose(run: RunRecord) -> list[Finding]:
    """Return what is wrong with a run, that of the policy first."""
    return [finding for symptom in SYMPTOMS.values() if (finding := symptom(run)) is not None]


def write_diagnosis(folder: Path, run: RunRecord, findings: Sequence[Finding]) -> Path:
    """Write doctor.json into `folder`; return its path."""
    content = {"iterations": run.iteration, "findings": [asdict(finding) for finding in findings]}
    return write_whole(folder / DOCTOR_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
