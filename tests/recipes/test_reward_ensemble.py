"""Ensembles of reward adapters: what is trained, what is left of a kill, and one base for all members."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from ranks import TESTS
from safetensors.torch import load_file
from tiny import make_model, make_tokenizer
from tiny_data import PPO_FLAGS, conversational_pairs, prompt_rows

from hf_rlhf.cli import main
from hf_rlhf.errors import InputError
from hf_rlhf.evaluation.report_card.guard import STALE, card_status
from hf_rlhf.models.reward_model import load_reward_model
from hf_rlhf.recipes.report_card import check_report_cards
from hf_rlhf.rewards.ensemble import EnsembleFile, load_ensemble
from hf_rlhf.rewards.learned import LearnedReward

ROWS = conversational_pairs(24)


def adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three members, beside the rows and the base that they were trained on."""
    folder = tmp_path_factory.mktemp("trained")
    tokenizer = make_tokenizer()
    for each in (make_model(tokenizer), tokenizer):
        each.save_pretrained(folder / "model")
    for name, rows in (("train", ROWS[:16]), ("test", ROWS[16:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = [*reward_argv(folder, folder / "out"), "--eval_dataset_name", str(folder / "test.jsonl")]
    assert main([*argv, "--num_reward_models", "3", "--seed", "5"]) == 0
    return folder


def reward_argv(folder, out):
    return [
        "reward", "--dataset_name", str(folder / "train.jsonl"), "--model_name_or_path", str(folder / "model"),
        "--dtype", "float32", "--lora_r", "4", "--per_device_train_batch_size", "4", "--report_to", "none",
        "--disable_tqdm", "true", "--use_cpu", "true", "--save_strategy", "no", "--max_steps", "2",
        "--learning_rate", "1e-2", "--save_merged", "false", "--output_dir", str(out),
    ]  # fmt: skip


@pytest.fixture
def ensemble(trained, tmp_path):
    return shutil.copytree(trained / "out", tmp_path / "out")


def test_a_member_has_the_bits_of_a_run_of_its_seed(trained, ensemble, tmp_path):
    """Member 2, although it was trained on a base that held another adapter before."""
    alone = tmp_path / "alone"
    assert main([*reward_argv(trained, alone), "--seed", "6"]) == 0
    assert same(adapter(ensemble / "member_2"), adapter(alone))
    assert not same(adapter(ensemble / "member_1"), adapter(ensemble / "member_2"))
    found = json.loads((ensemble / "evaluation.json").read_text())
    assert found["eval_rows"] == 8
    assert found["eval_disagreement"] > 0


def test_the_report_card_is_that_of_the_ensemble_and_of_its_members_weights(trained, ensemble):
    card = json.loads((ensemble / "report_card.json").read_text())
    assert card["accuracy"]["accuracy"] == json.loads((ensemble / "evaluation.json").read_text())["eval_accuracy"]
    assert not list(ensemble.glob("member_*/report_card.json"))
    assert card_status(str(ensemble)).state == card["verdict"]["word"]
    with (ensemble / "member_2" / "adapter_model.safetensors").open("ab") as file:
        file.write(b" ")
    assert card_status(str(ensemble)).state == STALE


def test_the_report_card_of_other_members_or_of_another_combination_is_stale(ensemble):
    whole = EnsembleFile.read(ensemble)
    for changed in (replace(whole, members=whole.members[:2], wanted=2), replace(whole, combination="min")):
        changed.write(ensemble)
        assert card_status(str(ensemble)).state == STALE
        whole.write(ensemble)
        assert card_status(str(ensemble)).state != STALE


@pytest.mark.parametrize(
    ("given", "used"),
    [({"ensemble_reward": "min"}, "min"), ({"ensemble_reward": "mean_minus_std"}, "mean_minus_std (lambda 1)"),
     ({"ensemble_reward": "mean"}, None), ({"ensemble_std_coef": 2.0}, None), ({}, None)],
)  # fmt: skip
def test_ppo_warns_of_a_combination_that_the_card_did_not_measure(ensemble, caplog, given, used):
    check_report_cards([str(ensemble)], required=False, **given)
    warned = f"its report card is of ensemble_reward mean, and this run uses {used}:"
    assert (warned in caplog.text) == (used is not None)
    assert caplog.text.count("this run uses") == (used is not None)


def test_the_folder_is_a_reward_for_ppo_on_the_policys_base(trained, ensemble, flags, write_rows, tmp_path, caplog):
    prompts = write_rows(prompt_rows(), "prompts.jsonl")
    argv = ["ppo", "--dataset_name", prompts, "--reward_model_path", str(ensemble), *flags, *PPO_FLAGS]
    argv += ["--max_steps", "1", "--output_dir", str(tmp_path / "ppo"), "--ensemble_reward", "min"]
    assert main([*argv, "--model_name_or_path", str(trained / "model")]) == 0
    (row,) = [json.loads(line) for line in (tmp_path / "ppo" / "metrics.jsonl").read_text().splitlines()][:1]
    assert row["out_disagreement"] > 0
    samples = [json.loads(line) for line in (tmp_path / "ppo" / "samples.jsonl").read_text().splitlines()]
    assert any("out_disagreement" in str(sample) for sample in samples)
    assert "this run uses min" in caplog.text


def test_combinations_are_those_of_the_members_scores(ensemble):
    rows = conversational_pairs(6)
    prompts, completions = [row["prompt"] for row in rows], [row["chosen"] for row in rows]
    reward = load_ensemble(ensemble, dtype="float32")
    members = []
    for number in (1, 2, 3):
        EnsembleFile(1, (f"member_{number}",)).write(ensemble)
        members.append(load_ensemble(ensemble, dtype="float32", unfinished=True)(prompts, completions))
    levels = torch.tensor(reward.centers)
    rewards = torch.tensor(members).T - levels + levels.mean()  # (B, k)
    logged = {}
    found = reward(prompts, completions, log_extra=logged.__setitem__, log_metric=logged.__setitem__)
    torch.testing.assert_close(torch.tensor(found), rewards.mean(1))
    assert logged["out_disagreement"] == pytest.approx(rewards.std(1, correction=0).mean().item(), rel=1e-4)
    reward.combination = "min"
    torch.testing.assert_close(torch.tensor(reward(prompts, completions)), rewards.amin(1))
    reward.combination, reward.std_coef = "mean_minus_std", 0.5
    by_hand = rewards.mean(1) - 0.5 * rewards.std(1, correction=0)
    torch.testing.assert_close(torch.tensor(reward(prompts, completions)), by_hand)


def test_the_level_of_a_member_decides_nothing(ensemble):
    """A loss of comparisons leaves it free: without centers, the member of the lowest level would be the minimum."""
    reward = load_ensemble(ensemble, dtype="float32")
    rows = ROWS[:16]  # those of the training
    texts = [row["prompt"] for row in rows] * 2, [row[side] for side in ("chosen", "rejected") for row in rows]
    by_member = reward.rewards(*texts, {}).double()
    torch.testing.assert_close(torch.tensor(reward.centers, dtype=torch.float64), by_member.mean(0))
    before = {how: combine(reward, how, texts) for how in ("mean", "min", "mean_minus_std")}
    members, levels = reward.members, reward.centers
    reward.members = [members[0], lambda ids, mask: members[1](ids, mask) - 7.0, members[2]]
    reward.centers = (levels[0], levels[1] - 7.0, levels[2])
    for how, found in before.items():
        torch.testing.assert_close(combine(reward, how, texts), found - 7 / 3)
    spread = json.loads((ensemble / "evaluation.json").read_text())["eval_disagreement"]
    assert spread < by_member.mean(0).std(correction=0) + by_member.std(0).mean()


def combine(reward, how, texts):
    reward.combination = how
    return torch.tensor(reward(*texts))


def test_an_ensemble_whose_levels_were_not_measured_is_incomplete(ensemble):
    EnsembleFile(1, ("member_1",)).write(ensemble)
    with pytest.raises(InputError, match="is incomplete"):
        load_ensemble(ensemble)
    EnsembleFile(1, ("member_1",), settings={"reward_loss": "regression"}).write(ensemble)
    assert load_ensemble(ensemble, dtype="float32").centers == ()


def tensors_of(reward):
    return {t.data_ptr(): t.numel() * t.element_size() for member in reward.members for t in member.model.parameters()}


def test_members_share_one_base_and_a_bf16_base_halves_their_matrices_without_changing_a_score(ensemble):
    rows = conversational_pairs(6)
    arguments = [row["prompt"] for row in rows], [row["chosen"] for row in rows]
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        reward = load_ensemble(ensemble, dtype=dtype)
        found = reward.rewards(*arguments, {})
        whole = sum(tensors_of(reward).values())
        alone = []
        for number in (1, 2, 3):
            EnsembleFile(1, (f"member_{number}",)).write(ensemble)
            alone.append(load_ensemble(ensemble, dtype=dtype, unfinished=True))
        EnsembleFile(3, ("member_1", "member_2", "member_3"), centers=(0.0, 0.0, 0.0)).write(ensemble)
        matrices = sum(t.numel() for name, t in adapter(ensemble / "member_1").items() if "lora" in name)
        heads = 32 * 4 * 3
        assert abs(whole - sum(tensors_of(alone[0]).values()) - 2 * matrices * size) < heads
        for number, one in enumerate(alone):
            assert torch.equal(found[:, number], one.rewards(*arguments, {})[:, 0])
        plain, tokenizer = load_reward_model(str(ensemble / "member_1"), dtype=dtype)
        assert torch.equal(found[:, 0], LearnedReward(plain, tokenizer).rewards(*arguments, {}))


def test_halves_are_of_prompts_and_differ_by_member():
    from datasets import Dataset

    from hf_rlhf.recipes.reward_ensemble import _half

    rows = Dataset.from_list([{"prompt": f"p{i % 10}", "chosen": f"{i}", "rejected": "x"} for i in range(40)])
    halves = [_half(rows, seed) for seed in (0, 1)]
    for half in halves:
        assert len(set(half["prompt"])) == 5
        assert len(half) == 20  # all rows of a prompt
    assert set(halves[0]["prompt"]) != set(halves[1]["prompt"])


def test_a_kill_in_the_middle_keeps_the_finished_members_and_resumes_the_other(flags, write_rows, tmp_path):
    train = write_rows(ROWS[:16], "train.jsonl")
    flags = [flag for flag in flags if flag not in ("--save_strategy", "no")]
    argv = ["reward", "--dataset_name", train, *flags, "--max_steps", "4", "--save_strategy", "steps", "--save_steps", "1", "--logging_steps", "1"]  # fmt: skip
    argv += ["--learning_rate", "1e-2", "--save_merged", "false", "--num_reward_models", "3"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*argv, "--output_dir", str(whole)]) == 0
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        [sys.executable, "-m", "hf_rlhf.cli", *argv, "--output_dir", str(killed)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    while run.poll() is None and not (killed / "member_2" / "checkpoint-2").is_dir():
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert EnsembleFile.read(killed).members == ("member_1",)
    first = (killed / "member_1" / "adapter_model.safetensors").stat().st_mtime_ns
    assert main(["ppo", "--dataset_name", train, *flags, "--reward_model_path", str(killed), "--output_dir", str(tmp_path / "ppo")]) == 2  # fmt: skip
    assert main([*argv, "--output_dir", str(killed), "--resume", "auto"]) == 0
    assert (killed / "member_1" / "adapter_model.safetensors").stat().st_mtime_ns == first
    for number in (1, 2, 3):
        assert same(adapter(whole / f"member_{number}"), adapter(killed / f"member_{number}"))
    steps = [json.loads(line)["step"] for line in (killed / "member_2" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 4]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--use_peft", "false"], "members are adapters on one base"),
        (["--resume", "somewhere"], "a checkpoint is of one member"),
        (["--ensemble_reward", "median"], "must be one of mean, min, mean_minus_std"),
    ],
)
def test_what_is_no_ensemble_is_one_message(failing, flags, write_rows, argv, message):
    argv = ["reward", "--dataset_name", write_rows(ROWS), *flags, "--num_reward_models", "2", *argv]
    assert message in failing(*argv)
