"""A quickstart that is killed in every stage ends in the bits of one that was not."""

import contextlib
import logging
import os
import signal
import time

import datasets  # noqa: F401 - here and not in each of the processes
import matplotlib.pyplot  # noqa: F401
from checkpoint.runs import in_child, outcome, start_child
from tiny import make_model, make_tokenizer

from hf_rlhf.checkpoint.folders import commit
from hf_rlhf.quickstart.arguments import QuickstartArguments
from hf_rlhf.quickstart.replies import sample_candidates
from hf_rlhf.quickstart.run import run_quickstart
from hf_rlhf.records import append_json_lines, read_json_lines
from hf_rlhf.training import (
    saving,
    trl_trainers,  # noqa: F401
)

MOMENTS = (
    ".partial/candidates/train.jsonl",
    ".partial/reward_model/metrics.jsonl",
    ".partial/reward_model/checkpoint-5",
    ".partial/reward_model/adapter_model.safetensors",
    ".partial/policy/checkpoint-8",
    ".partial/policy/adapter_model.safetensors",
    ".partial/evaluation/before.jsonl",
    "results.json",
)
"""Files that are there when a run is killed."""


def settings(folder, **flags):
    """A tiny model, which is made on the first call, and little of everything."""
    base = folder / "base"
    if not base.exists():
        tokenizer = make_tokenizer()
        make_model(tokenizer, max_position_embeddings=256).save_pretrained(base)
        tokenizer.save_pretrained(base)
    given = {
        "candidates_per_prompt": 2,
        "max_completion_length": 6,
        "annotator_tie_margin": 0.0,
        "max_preferences": 160,
    }
    return QuickstartArguments(model_name_or_path=str(base), **(given | {"messages": 96, "ppo_iterations": 3} | flags))


def killed_when(work, file):
    """Do `work` in a process that is killed as soon as `file` is there; returns whether it met it."""
    child = start_child(work)
    while not file.exists():
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] != 0


def everything(folder):
    """Return everything that must be the same bits."""
    texts = {
        name: (folder / name).read_text()
        for name in (
            "candidates/train.jsonl",
            "candidates/test.jsonl",
            "preferences/train.jsonl",
            "preferences/test.jsonl",
            "reward_model/evaluation.json",
            "evaluation/before.jsonl",
            "evaluation/after.jsonl",
            "results.json",
        )
    }
    return texts, outcome(folder / "reward_model"), outcome(folder / "policy")


def test_a_run_killed_in_every_stage_ends_as_one_that_was_not(tmp_path):
    args, errors = settings(tmp_path), tmp_path / "errors.txt"
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def run(folder):
        args.output_dir = str(folder)
        run_quickstart(args)

    assert in_child(lambda: run(whole), stderr=errors) == 0, errors.read_text()
    met = [killed_when(lambda: run(killed), killed / moment) for moment in MOMENTS]
    assert in_child(lambda: run(killed), stderr=errors) == 0, errors.read_text()
    assert everything(killed) == everything(whole)
    assert sum(met) >= len(MOMENTS) - 2  # a busy machine may look too late
    assert not list(killed.glob(".*")), "something half-made is left"
    assert not list(killed.glob("*/checkpoint-*"))


def test_a_run_that_moves_to_another_kind_of_machine_says_in_which_dtypes_it_trained(tmp_path, monkeypatch):
    args, errors, printed = settings(tmp_path), tmp_path / "errors.txt", tmp_path / "printed.txt"
    folder = tmp_path / "moved"
    args.output_dir = str(folder)

    def run_in_child(*, multiplies, dies_at=None):
        monkeypatch.setattr("hf_rlhf.models.precision._multiplies_bfloat16", lambda device: multiplies)

        def commit_and_die(scratch, target, **facts):
            commit(scratch, target, **facts)
            if target.name == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)

        def run():
            saving.commit = commit_and_die
            with printed.open("w") as file, contextlib.redirect_stdout(file):
                logging.getLogger().addHandler(logging.StreamHandler(file))
                run_quickstart(args)

        return in_child(run, stderr=errors)

    assert run_in_child(multiplies=True, dies_at="checkpoint-5") == signal.SIGKILL
    assert (folder / ".partial/reward_model/checkpoint-5").is_dir()
    assert run_in_child(multiplies=False) == 0, errors.read_text()
    said = " ".join(printed.read_text().split())
    assert "Models are loaded in float32: this cpu does not multiply bfloat16 in hardware" in said
    assert "A training that resumes keeps the dtype of its checkpoint." in said
    assert "resuming from checkpoint-" in said
    assert "was written" not in said
    assert "dtype of the base | bfloat16" in (folder / "reward_model" / "README.md").read_text()
    assert "dtype of the base | float32" in (folder / "policy" / "README.md").read_text()

    assert run_in_child(multiplies=True) == 0, errors.read_text()  # every stage is reused
    assert "dtype of the base | float32" in (folder / "policy" / "README.md").read_text()


def test_replies_that_were_written_are_kept(tmp_path):
    args = settings(tmp_path)
    rows = [{"prompt": "p", "completion": f"{number}", "finished": True} for number in range(70)]
    append_json_lines(tmp_path / "train.jsonl", rows)
    with (tmp_path / "train.jsonl").open("a") as lines:
        lines.write('{"prompt": "p", "compl')
    sample_candidates(args, tmp_path, tmp_path)
    found = read_json_lines(tmp_path / "train.jsonl")
    assert found[:64] == rows[:64]
    assert len(found) == 2 * 96
    assert "p" not in {row["prompt"] for row in found[64:]}
