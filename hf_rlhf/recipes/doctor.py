"""The doctor from the command line: what is wrong with the PPO run in a folder, and what to change."""

from dataclasses import dataclass
from pathlib import Path

from hf_rlhf.errors import InputError, did_you_mean
from hf_rlhf.evaluation.doctor.diagnosis import FINDINGS, SYMPTOMS, diagnose
from hf_rlhf.evaluation.doctor.record import Finding, RunRecord
from hf_rlhf.progress import say
from hf_rlhf.recipes.arguments import PPOArguments, flag


@dataclass
class DoctorArguments:
    """The run to look at."""

    run_dir: str | None = flag(None, "Folder of a PPO run, under way or ended.")


def examine_run(args: DoctorArguments) -> list[Finding]:
    """Print what is wrong with a run, and return it.

    Raises `InputError` where the folder holds no PPO run.
    """
    if args.run_dir is None:
        raise InputError("run_dir is missing. Use: hf-rlhf doctor RUN_DIR")
    run = RunRecord.read(Path(args.run_dir))
    findings = diagnose(run)
    say(in_words(run, findings))
    return findings


def in_words(run: RunRecord, findings: list[Finding]) -> str:
    """Return a diagnosis as lines for a terminal."""
    iterations = "1 iteration" if run.iteration == 1 else f"{run.iteration} iterations"
    head = f"{iterations}, {len(SYMPTOMS)} symptoms looked for, {len(findings)} found"
    lines = [head]
    for finding in findings:
        lines += [
            "",
            f"{finding.symptom} ({finding.name})",
            f"  cause:    {finding.cause}",
            f"  evidence: {finding.evidence}",
            f"  change:   {finding.change}",
        ]
    if findings:
        lines += ["", "docs/troubleshooting.md has more under these headings."]
    return "\n".join(lines)


def require_findings(script: PPOArguments) -> None:
    """Raise `InputError` where `doctor_stop` names what the doctor does not find."""
    for name in script.doctor_stop or ():
        if name not in FINDINGS:
            raise InputError(
                f"doctor_stop={name} is invalid. {did_you_mean(name, FINDINGS)}It must be of {', '.join(FINDINGS)}."
            )
    if script.doctor_stop and not script.doctor:
        raise InputError("doctor_stop is invalid with doctor=False. Omit one of them.")
