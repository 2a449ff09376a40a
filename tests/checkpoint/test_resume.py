"""The checkpoint that a run resumes from; nothing damaged is ever loaded."""

import json
import os
import random
import shutil

import pytest
import torch
from checkpoint.runs import SAVES, moody_reward
from tiny import make_prompts, make_trainer, metrics_of, snapshot

from hf_rlhf.checkpoint.manifest import DamagedCheckpoint, verified_facts
from hf_rlhf.checkpoint.resume import VerifiedCheckpoint, resume_point
from hf_rlhf.checkpoint.state import random_state, save_state
from hf_rlhf.errors import InputError
from hf_rlhf.records import cut_logs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a finished run with checkpoints 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    make_trainer(folder, **SAVES | {"save_total_limit": None}, save_steps=4, max_steps=12).train()
    return folder


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it."""
    return shutil.copytree(whole, tmp_path / "run")


def flip_a_byte(folder, file, draws):
    content = bytearray(file.read_bytes())
    content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
    file.write_bytes(content)


def truncate(folder, file, draws):
    os.truncate(file, draws.randrange(file.stat().st_size))


def lengthen(folder, file, draws):
    with file.open("ab") as content:
        content.write(b"\n")


def remove(folder, file, draws):
    file.unlink()


def rename(folder, file, draws):
    file.rename(file.with_name(f"{file.name}.old"))


def empty(folder, file, draws):
    file.write_bytes(b"")


def empty_folder(folder, file, draws):
    shutil.rmtree(folder)
    folder.mkdir()


def add(folder, file, draws):
    (file.parent / f"added-{draws.randrange(9)}.bin").write_bytes(b"more")


def swap(folder, file, draws):
    other = draws.choice(
        [path for path in folder.rglob("*") if path.is_file() and path.read_bytes() != file.read_bytes()]
    )
    mine, theirs = file.read_bytes(), other.read_bytes()
    file.write_bytes(theirs)
    other.write_bytes(mine)


DAMAGES = (flip_a_byte, truncate, lengthen, remove, rename, empty, empty_folder, add, swap)


def test_two_hundred_of_two_hundred_damaged_checkpoints_are_found(whole, tmp_path):
    draws = random.Random(0)
    verified_facts(whole / "checkpoint-12")
    for number in range(200):
        folder = shutil.copytree(whole / "checkpoint-12", tmp_path / "checkpoint-12")
        file = draws.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        if number < 40:  # the manifest itself
            file = folder / "manifest.json"
        damage = DAMAGES[number % len(DAMAGES)]
        damage(folder, file, draws)
        with pytest.raises(DamagedCheckpoint):
            verified_facts(folder)
        shutil.rmtree(folder)


def test_every_byte_of_the_manifest_counts(whole, tmp_path):
    folder = shutil.copytree(whole / "checkpoint-12", tmp_path / "checkpoint-12")
    content = (folder / "manifest.json").read_bytes()
    for place in range(0, len(content), 3):
        (folder / "manifest.json").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(DamagedCheckpoint, match=r"manifest\.json"):
            verified_facts(folder)


def test_auto_takes_the_newest_whole_one_and_names_the_others(run, caplog):
    flip_a_byte(run, run / "checkpoint-12" / "optimizer.safetensors", random.Random(1))
    (run / "checkpoint-8" / "adapter_model.safetensors").unlink()
    assert resume_point(run, "auto") == str(run / "checkpoint-4")
    assert "checkpoint-12 is damaged or no checkpoint: the content of optimizer.safetensors has changed" in caplog.text
    assert "checkpoint-8 is damaged or no checkpoint: adapter_model.safetensors is missing" in caplog.text
    assert "renamed to checkpoint-12.set-aside, and the run resumes from checkpoint-4" in caplog.text
    assert len(caplog.records) == 2
    names = {path.name for path in run.glob("checkpoint-*")}
    assert names == {"checkpoint-4", "checkpoint-8.set-aside", "checkpoint-12.set-aside"}  # nothing is deleted


def test_when_none_is_whole_the_run_does_not_start_anew(run, caplog):
    for checkpoint in run.glob("checkpoint-*"):
        (checkpoint / "trainer_state.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"(?s)checkpoint-12 .*trainer_state\.json.*checkpoint-4 .*No checkpoint is whole"
    ):
        resume_point(run, "auto")
    assert not caplog.records  # the error says it once


def test_auto_without_any_checkpoint_starts_anew(tmp_path):
    assert resume_point(tmp_path, "auto") is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 4}\n')  # of a run killed before its first checkpoint
    assert resume_point(tmp_path, "auto") is None
    assert (tmp_path / "metrics.jsonl.set-aside").exists()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_auto_does_not_write_over_a_finished_run(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="holds a run already"):
        resume_point(tmp_path, "auto")


def test_last_wants_a_checkpoint(tmp_path):
    for wanted in ("last", True):
        with pytest.raises(InputError, match="nothing to resume"):
            resume_point(tmp_path, wanted)


@pytest.mark.parametrize("wanted", ["never", None, False, "none"])
def test_never_takes_none(run, wanted):
    assert resume_point(run, wanted) is None


def test_a_path_is_taken_or_is_an_error(run, tmp_path):
    assert resume_point(run, str(run / "checkpoint-8")) == str(run / "checkpoint-8")
    assert (run / "checkpoint-12.set-aside").is_dir(), "the run will come to update 12 again"
    with pytest.raises(InputError, match="is no folder"):
        resume_point(run, str(run / "checkpoint-9"))
    with pytest.raises(InputError, match=r"there is no manifest\.json"):
        resume_point(run, str(run))
    truncate(run, run / "checkpoint-8" / "run_state.json", random.Random(2))
    with pytest.raises(InputError, match=r"run_state\.json has \d+ bytes"):
        resume_point(run, str(run / "checkpoint-8"))


def test_a_checkpoint_of_another_run_does_not_go_into_this_ones_logs(run, tmp_path):
    (tmp_path / "other").mkdir()
    assert resume_point(tmp_path / "other", str(run / "checkpoint-8")) == str(run / "checkpoint-8")
    (tmp_path / "other" / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="holds a run already"):
        resume_point(tmp_path / "other", str(run / "checkpoint-8"))


def test_another_number_of_ranks_is_refused(run, monkeypatch):
    monkeypatch.setattr("hf_rlhf.checkpoint.resume.world_size", lambda: 2)
    with pytest.raises(InputError, match=r"written by 1 ranks, and this run has 2.*start the run with 1"):
        resume_point(run, "auto")


def test_another_version_of_the_format_is_named(run):
    file = run / "checkpoint-12" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 2}))
    with pytest.raises(InputError, match="of format 2, and this version reads format 1"):
        resume_point(run, str(run / "checkpoint-12"))


def test_what_is_verified_is_not_read_again(run):
    checkpoint = VerifiedCheckpoint(run / "checkpoint-12")
    (run / "checkpoint-12" / "manifest.json").unlink()
    assert resume_point(run, checkpoint) is checkpoint


def test_a_run_resumed_at_its_end_only_ends(run, capsys):
    before = metrics_of(run)
    resumed = make_trainer(run, **SAVES, save_steps=4, max_steps=12)
    resumed.train(resume_from_checkpoint="auto")
    assert resumed.state.global_step == resumed.resumed_at == 12
    assert metrics_of(run) == before
    assert "nothing to train: checkpoint-12 is the last of max_steps=12\n" in capsys.readouterr().out


def test_every_rank_takes_up_its_own_random_numbers(tmp_path, monkeypatch):
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append({"random": random_state()})
    save_state(tmp_path, "run_state", {"ranks": states})
    monkeypatch.setattr("hf_rlhf.training.resuming.rank", lambda: 1)
    make_trainer(tmp_path)._load_rng_state(str(tmp_path))
    drawn = torch.rand(3)
    torch.manual_seed(2)
    assert torch.equal(drawn, torch.rand(3))


ENDS = {
    "after whole passes": {"max_steps": 8},
    "inside a pass": {"max_steps": 4},
    "with the best model": {"load_best_model_at_end": True, "metric_for_best_model": "reward", "eval_on_start": True},
}


@pytest.mark.parametrize("flags", ENDS.values(), ids=ENDS)
def test_a_run_killed_before_its_final_evaluation_ends_with_the_same_one(tmp_path, flags):
    """The reward draws from every global generator, and nothing is left to train that would have set them."""

    def final(resume):
        extra = {"eval_dataset": make_prompts(5)}
        given = {
            **SAVES,
            "save_steps": 4,
            "max_steps": 8,
            "eval_strategy": "steps",
            "eval_steps": 4,
            "kl_target": 0.5,
            **flags,
        }
        trainer = make_trainer(tmp_path / "run", reward=moody_reward, trainer_kwargs=extra, **given)
        trainer.train(resume_from_checkpoint=resume)
        if resume == "never":
            shutil.copytree(tmp_path / "run", tmp_path / "killed")
        trainer.evaluate()
        return trainer, metrics_of(tmp_path / "run"), (tmp_path / "run" / "samples.jsonl").read_text()

    trainer, rows, samples = final("never")
    expected = snapshot(trainer.policy)
    (tmp_path / "run").rename(tmp_path / "ended")
    (tmp_path / "killed").rename(tmp_path / "run")
    resumed, *logs = final("auto")
    assert resumed.resumed_at == trainer.state.global_step
    assert logs == [rows, samples]
    assert all(torch.equal(weight, expected[name]) for name, weight in snapshot(resumed.policy).items())


def test_a_resumed_run_says_where_it_goes_on_and_which_flags_changed(run, capsys):
    shutil.rmtree(run / "checkpoint-12")
    flags = {**SAVES, "save_total_limit": None, "save_steps": 4, "max_steps": 12}
    resumed = make_trainer(run, **flags, kl_coef=0.5)
    resumed.train(resume_from_checkpoint="auto")
    said = capsys.readouterr().out
    assert "resuming from checkpoint-8 (update 8 of 12)\n" in said
    assert "flags that differ from those the run began with: kl_coef 0.05 -> 0.5\n" in said
    assert [row["objective/kl_coef"] for row in metrics_of(run) if "loss" in row] == [0.05, 0.05, 0.5]


def test_a_run_stopped_inside_a_pass_resumes_at_its_end_without_another_update(tmp_path):
    """Stop after the first of the two iterations that 16 prompts make."""
    flags = {**SAVES, "save_steps": 4, "max_steps": 4}
    make_trainer(tmp_path, **flags).train()
    before = metrics_of(tmp_path)
    resumed = make_trainer(tmp_path, **flags)
    resumed.train(resume_from_checkpoint="last")
    assert resumed.state.global_step == 4
    assert metrics_of(tmp_path) == before


def test_a_torn_last_line_is_mended(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 4}\n{"step": 8}\n{"st')
    cut_logs(tmp_path, {"metrics.jsonl": 10**6, "samples.jsonl": 0})
    assert log.read_text() == '{"step": 4}\n{"step": 8}\n'
    cut_logs(tmp_path, {"metrics.jsonl": 12})
    assert log.read_text() == '{"step": 4}\n'


def test_what_a_callback_adds_does_no_harm(run):
    (run / "checkpoint-12" / "ema.json").write_text("{}")
    assert resume_point(run, "auto") == str(run / "checkpoint-12")


@pytest.mark.parametrize(
    ("flag", "message"),
    {
        "seed": (7, "a run with seed=42, and this one has 7: it would see other prompts than that run; resume with seed=42"),
        "per_device_train_batch_size": (2, r"rollout_batch_size=8, and this one has 4 \(per_device_train_batch_size 4 -> 2\)"),
        "num_mini_batches": (1, r"has 4 \(num_mini_batches 2 -> 1\).*resume with --num_mini_batches 2, or start a new run"),
        "num_ppo_epochs": (1, r"updates_per_iteration=4, and this one has 2 \(num_ppo_epochs 2 -> 1\)"),
    }.items(),
)  # fmt: skip
def test_flags_that_say_what_a_run_sees_cannot_change_in_its_middle(run, flag, message):
    changed = make_trainer(run, **SAVES | {"save_steps": 4, "max_steps": 16, flag: message[0]})
    with pytest.raises(InputError, match=message[1]):
        changed.train(resume_from_checkpoint="auto")
