"""The doctor: real runs with a planted fault each, healthy ones, and what it reads and says."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import make_model, make_prompts, make_tokenizer, make_trainer, perturb

from hf_rlhf.errors import InputError
from hf_rlhf.evaluation.doctor.callback import Doctor
from hf_rlhf.evaluation.doctor.diagnosis import FINDINGS, diagnose
from hf_rlhf.evaluation.doctor.record import DOCTOR_FILE, RunRecord
from hf_rlhf.ppo.trainer import PPOTrainer
from hf_rlhf.recipes.doctor import DoctorArguments, examine_run
from hf_rlhf.rollout.collect import collect

DOCS = Path(__file__).parents[2] / "docs"


def words(completions):
    return [completion[0]["content"].split() for completion in completions]


def pays_happy(prompts, completions, **columns):
    return [each.count("happy") / max(len(each), 1) for each in words(completions)]


def pays_happy_often(prompts, completions, **columns):
    return [float(each.count("happy")) for each in words(completions)]


def pays_length(prompts, completion_ids, **columns):
    return [len(ids) / 8 for ids in completion_ids]


def pays_silence(prompts, completion_ids, **columns):
    return [-len(ids) / 8 for ids in completion_ids]


def pays_all_the_same(prompts, completions, **columns):
    return [1.0] * len(completions)


def pays_thousands(prompts, completions, **columns):
    return [1000 * reward for reward in pays_happy(prompts, completions)]


def pays_half_of_them(prompts, completions, number, **columns):
    return [reward if n % 2 else None for reward, n in zip(pays_happy(prompts, completions), number, strict=True)]


class OtherTemperature(PPOTrainer):
    """Samples with another temperature than the one that it trains."""

    def sample(self, rows, seeds):
        return collect(self.engine, rows, self.processing_class, replace(self.sampling, temperature=0.3), seeds, None)


class StaleSampler(PPOTrainer):
    """Samples from the weights that the run began with, as an engine that never gets the new ones."""

    def sample(self, rows, seeds):
        with self.policy.model.disable_adapter():
            return super().sample(rows, seeds)


def mixing_rows(tokenizer):
    """Give a model whose first block adds the mean over all tokens of the batch."""
    model = make_model(tokenizer)
    mlp: Any = model.model.layers[0].mlp
    mlp.register_forward_hook(lambda _, args, out: out + out.mean(dim=tuple(range(out.dim() - 1))))
    return model


def run(folder, *, iterations=8, seed=0, trainer=None, model=None, stop_on=(), **settings):
    """Run PPO beside the doctor; give the names it said, and the trainer."""
    tokenizer = make_tokenizer()
    updates = settings.get("num_ppo_epochs", 2) * settings.get("num_mini_batches", 2)
    made = make_trainer(
        folder,
        model=make_model(tokenizer, seed=seed) if model is None else model(tokenizer),
        tokenizer=tokenizer,
        **{
            "data": make_prompts(32),
            "per_device_train_batch_size": 8,
            "learning_rate": 3e-3,
            "lr_scheduler_type": "constant",
            "vf_coef": 1.0,
            "seed": seed,
            "max_steps": iterations * updates,
        }
        | settings,
    )
    if trainer is not None:
        made.__class__ = trainer
    doctor = Doctor(made, stop_on)
    made.add_callback(doctor)
    made.train()
    found = json.loads((Path(folder) / DOCTOR_FILE).read_text())["findings"]
    return [each["name"] for each in found], made


HACKABLE = {"learning_rate": 1e-2, "kl_coef": 0.0, "lora": None, "iterations": 12}
BANDIT = {**HACKABLE, "max_completion_length": 1}
FAULTS = {
    "sampler_gap": {"trainer": OtherTemperature},
    "kl_negative": {"trainer": StaleSampler, "learning_rate": 2e-2, "iterations": 12, "kl_coef": 0.0},
    "kl_at_start": {"trainer_kwargs": {"ref_model": lambda: perturb(make_model(make_tokenizer()))}, "iterations": 1},
    "ratio_at_start": {
        "model": lambda tokenizer: make_model(tokenizer, attention_dropout=0.5),
        "disable_dropout": False,
        "iterations": 1,
    },
    "padding": {"model": mixing_rows, "iterations": 1},
    "updates_too_large": {"learning_rate": 0.5, "iterations": 3, "max_grad_norm": 0},
    "policy_does_not_move": {"learning_rate": 1e-12},
    "kl_grows": {"learning_rate": 3e-2, "kl_coef": 0.0, "iterations": 16},
    "penalty_too_strong": {"kl_coef": 5.0},
    "reward_constant": {"reward": pays_all_the_same, "iterations": 3},
    "reward_scale": {"reward": pays_thousands, "iterations": 3},
    "no_reward": {"reward": pays_half_of_them, "iterations": 3},
    "never_stops": {"top_k": 2, "max_completion_length": 2, "seed": 5, "iterations": 3, "learning_rate": 1e-5},
    "entropy_collapse": {**BANDIT, "iterations": 12},
    "reward_saturated": {**BANDIT, "iterations": 16},
    "text_repeats": {**HACKABLE, "iterations": 16, "reward": pays_happy_often, "num_logged_samples": 8},
    "length_drift": {
        **HACKABLE,
        "reward": pays_length,
        "max_completion_length": 16,
        "stop_token_ids": list(range(7, 13)),
    },
    "length_collapse": {**HACKABLE, "reward": pays_silence},
    "critic_under_fit": {"vf_coef": 0.0, "iterations": 20, "learning_rate": 1e-3},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named(tmp_path, name):
    settings = dict(FAULTS[name])
    if "trainer_kwargs" in settings:
        settings["trainer_kwargs"] = {key: make() for key, make in settings["trainer_kwargs"].items()}
    found, _ = run(tmp_path / "run", **settings)
    assert name in found


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_run_has_no_finding(tmp_path, seed):
    found, trainer = run(tmp_path / "run", seed=seed, iterations=12, num_logged_samples=8)
    assert found == []
    assert examine_run(DoctorArguments(str(tmp_path / "run"))) == []
    (doctor,) = (each for each in trainer.callback_handler.callbacks if isinstance(each, Doctor))
    assert doctor.found == {}


def test_a_finding_ends_a_run_that_asks_for_it(tmp_path, caplog):
    found, trainer = run(tmp_path / "run", reward=pays_all_the_same, iterations=8, stop_on=["reward_constant"])
    assert found == ["reward_constant"]
    assert trainer.iteration == 3
    assert sum("doctor: The reward does not move (reward_constant)" in message for message in caplog.messages) == 1
    assert any("doctor_stop" in message for message in caplog.messages)


def test_a_resumed_run_is_judged_by_all_of_its_iterations(tmp_path):
    folder = tmp_path / "run"
    settings = {"reward": pays_all_the_same, "save_strategy": "steps", "save_steps": 4}
    run(folder, iterations=2, **settings)
    made = make_trainer(
        folder, tokenizer=make_tokenizer(), data=make_prompts(32), per_device_train_batch_size=8, learning_rate=3e-3,
        lr_scheduler_type="constant", vf_coef=1.0, max_steps=12, seed=0, **settings
    )  # fmt: skip
    doctor = Doctor(made)
    made.add_callback(doctor)
    made.train(resume_from_checkpoint=str(folder / "checkpoint-8"))
    assert [int(row["iteration"]) for row in doctor.rows] == [1, 2, 3]
    assert list(doctor.found) == ["reward_constant"]


def record(**metrics):
    """Make the record of a run from lists of numbers."""
    count = max(map(len, metrics.values()))
    rows = [{"iteration": n + 1, **{name: values[n] for name, values in metrics.items()}} for n in range(count)]
    rows = [{key.replace("__", "/"): value for key, value in row.items()} for row in rows]
    return RunRecord(rows, {"max_turns": 4}, evaluations=[row for row in rows if row.get("eval_reward") is not None])


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("nonfinite_updates", {"nonfinite_updates": [0, 0, 1]}),
        (
            "updates_refused",
            {"policy__updates": [1, 4], "policy__skipped_updates": [3, 0], "policy__empty_updates": [0, 0]},
        ),
        ("episodes_cut", {"episodes__turns": [1.0, 1.5], "episodes__truncated": [1.0, 0.9]}),
        (
            "learned_by_heart",
            {"reward": [0.0] * 4 + [2.0] * 4, "reward_std": [0.5] * 8, "eval_reward": [0.1] + [None] * 6 + [0.0]},
        ),
    ],
)
def test_counts_and_evaluations_are_read(name, metrics):
    assert [finding.name for finding in diagnose(record(**metrics))] == [name]


def test_evaluations_are_seen_during_a_run_and_read_after_it(tmp_path):
    _, trainer = run(
        tmp_path / "run",
        iterations=2,
        eval_strategy="steps",
        eval_steps=4,
        trainer_kwargs={"eval_dataset": make_prompts(8)},
    )
    (doctor,) = (each for each in trainer.callback_handler.callbacks if isinstance(each, Doctor))
    seen = [row["eval_reward"] for row in doctor.evaluations]
    assert len(seen) == 2
    assert RunRecord.read(tmp_path / "run").numbers("eval_reward") == seen


def test_numbers_that_are_missing_or_null_are_no_finding():
    assert diagnose(record(reward=[None] * 30)) == []
    assert diagnose(RunRecord([{"iteration": 7, "reward": 1.0}])) == []


def test_every_finding_has_a_place_in_the_docs_and_names_flags_and_metrics_that_exist():
    page = (DOCS / "troubleshooting.md").read_text()
    source = "".join(file.read_text() for file in Path(diagnose.__code__.co_filename).parent.glob("*.py"))
    headings = re.findall(r"^### (.*)$", page, re.M)
    symptoms = re.findall(r'^ +"([A-Z][^"]*)",$', source, re.M)
    assert len(symptoms) >= len(FINDINGS)
    assert {each for each in symptoms if not each.endswith(".")} <= set(headings)
    assert all(f"`{name}`" in page for name in FINDINGS)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no metrics\.jsonl"):
        examine_run(DoctorArguments(str(tmp_path)))
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1.0}\n')
    with pytest.raises(InputError, match="runs of PPO alone"):
        examine_run(DoctorArguments(str(tmp_path)))
    with pytest.raises(InputError, match="run_dir is missing"):
        examine_run(DoctorArguments())


def test_the_probe_of_padding_stays_within_the_positions_of_the_model(tmp_path):
    found, _ = run(
        tmp_path / "run",
        model=lambda tokenizer: make_model(tokenizer, max_position_embeddings=20),
        max_prompt_length=12,
        max_completion_length=8,
        data=make_prompts(32).map(lambda row: {"prompt": [{"role": "user", "content": "the cat sat on the mat"}]}),
        iterations=1,
    )
    assert "padding" not in found


def test_files_that_no_run_writes_are_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1, "reward": 1.0}\n')
    for name, content in (("config.yaml", "a: ["), ("config.yaml", "text"), ("samples.jsonl", "no json\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=r"is not what a run writes|cannot be read"):
            examine_run(DoctorArguments(str(tmp_path)))
        (tmp_path / name).unlink()
