"""Report cards from the command line, at the end of training, and as PPO reads them."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from pages import Page
from tiny_data import PPO_FLAGS, conversational_pairs, plain_pairs, prompt_rows

from hf_rlhf import progress
from hf_rlhf.cli import main
from hf_rlhf.evaluation.report_card import card_status, read_report_card
from hf_rlhf.recipes.report_card import check_report_cards

REWARD_FLAGS = ["--num_train_epochs", "1", "--learning_rate", "3e-3", "--logging_steps", "5"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a reward model that was trained on a rule, with its report card."""
    from tiny import make_model, make_tokenizer

    folder = tmp_path_factory.mktemp("trained")
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    pairs = conversational_pairs(40)
    for name, rows in (("train", pairs[:16]), ("test", pairs[16:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    argv = [
        "reward", "--model_name_or_path", str(folder / "model"), "--dtype", "float32", "--lora_r", "4",
        "--dataset_name", str(folder / "train.jsonl"), "--eval_dataset_name", str(folder / "test.jsonl"),
        "--output_dir", str(folder / "reward"), "--per_device_train_batch_size", "4", "--report_to", "none",
        "--disable_tqdm", "true", "--use_cpu", "true", "--save_strategy", "no", *REWARD_FLAGS,
    ]  # fmt: skip
    assert main(argv) == 0
    return folder


@pytest.fixture
def reward_model(trained, tmp_path):
    """A copy of it, to change."""
    shutil.copytree(trained / "reward", tmp_path / "reward")
    return tmp_path / "reward"


def set_verdict(folder, word):
    card = read_report_card(folder)
    card["verdict"] |= {"word": word, "headline": f"{word}: said by the card."}
    (folder / "report_card.json").write_text(json.dumps(card), encoding="utf-8")


@pytest.fixture
def ppo(flags, write_rows):
    def run(reward_model, *more):
        rows = write_rows(prompt_rows(), "prompts.jsonl")
        return main(
            ["ppo", "--dataset_name", rows, "--reward_model_path", str(reward_model), *flags, *PPO_FLAGS, *more]
        )

    return run


# At the end of training


def test_training_writes_the_card_and_its_section_of_the_model_card(trained):
    folder = trained / "reward"
    card, result = read_report_card(folder), json.loads((folder / "evaluation.json").read_text())
    assert card["accuracy"]["accuracy"] == result["eval_accuracy"]
    assert card["accuracy"]["n"] == result["eval_rows"] == 24
    assert set(card["weights"]) == {"adapter_model.safetensors", "merged/model.safetensors"}
    assert any(rule["name"] == "bag of words, learned from the training pairs" for rule in card["baselines"])
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert "## Is it good enough?" in readme
    assert "this model" in readme
    assert "svg" in Page((folder / "report_card.html").read_text(encoding="utf-8")).tags


@pytest.mark.parametrize("loss", ["bradley_terry", "k_wise"])
def test_every_long_step_after_the_last_update_shows_that_it_is_under_way(loss, flags, write_rows, monkeypatch, capsys):
    """Each step prints at once what it prints else after some seconds."""

    @contextmanager
    def at_once(show):
        show()
        yield

    monkeypatch.setattr(progress, "FIRST_LINE_SECONDS", -1.0)
    monkeypatch.setattr(progress, "PLAIN_LINE_SECONDS", 100.0)
    monkeypatch.setattr(progress, "_each_second", at_once)
    rows = conversational_pairs(24)
    if loss == "k_wise":
        both = [{"prompt": row["prompt"], "completions": [row["chosen"], row["rejected"]]} for row in rows]
        rows = [row | {"ratings": [1, 0]} for row in both]
    sets = ["--dataset_name", write_rows(rows[:16], "a.jsonl"), "--eval_dataset_name", write_rows(rows[16:], "b.jsonl")]
    assert main(["reward", *sets, *flags, "--reward_loss", loss, "--max_steps", "1"]) == 0
    shown = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    steps = ["saving", "loading what was saved, and comparing its rewards",
             *(["agreement with the evaluation set"] if loss == "k_wise" else []), "report card",
             "comparing the rewards of the plain classifier"]  # fmt: skip
    assert [line for line in shown if line in steps] == steps


# The command


def test_the_command_measures_the_same_as_the_run_did(trained, tmp_path, capsys):
    argv = ["report-card", str(trained / "reward"), "--dataset_name", str(trained / "test.jsonl")]
    argv += ["--train_dataset_name", str(trained / "train.jsonl"), "--output_dir", str(tmp_path / "card")]
    assert main(argv) == 0
    ours, theirs = read_report_card(tmp_path / "card"), read_report_card(trained / "reward")
    assert ours["accuracy"] == theirs["accuracy"]
    assert ours["baselines"] == theirs["baselines"]
    assert [probe["preferred"] for probe in ours["probes"]] == [probe["preferred"] for probe in theirs["probes"]]
    assert theirs["verdict"]["headline"] in capsys.readouterr().out


def test_a_function_that_reads_length_is_named_from_the_command_line(tmp_path, write_rows, capsys):
    rows = [
        {"prompt": "Say. ", "chosen": f"{n} {'a long answer ' * (n % 7)}", "rejected": f"no {n}"} for n in range(30)
    ]
    (tmp_path / "length.py").write_text(
        "def reward(prompts, completions):\n    return [len(completion) for completion in completions]\n"
    )
    file = write_rows(rows)
    argv = ["report-card", f"{tmp_path / 'length.py'}:reward", "--dataset_name", file, "--output_dir", str(tmp_path)]
    assert main(argv) == 0
    assert "It has learned length" in capsys.readouterr().out
    assert read_report_card(tmp_path)["verdict"]["word"] == "do not use"


def test_a_rewardbench_file_is_scored_by_subset_as_messages(trained, tmp_path, write_rows, capsys):
    rows = [row | {"subset": ("hep-go", "donotanswer")[n % 2], "id": n} for n, row in enumerate(plain_pairs(24))]
    argv = ["report-card", str(trained / "reward"), "--dataset_name", write_rows(rows), "--output_dir", str(tmp_path)]
    assert main(argv) == 0
    card, out = read_report_card(tmp_path), capsys.readouterr().out
    assert {group["name"] for group in card["tables"]["subset"]} == {"hep-go", "donotanswer"}
    assert [section["name"] for section in card["sections"]] == ["Safety", "Reasoning"]
    assert "read as messages" in out
    assert "section Safety" in out


def test_what_is_wrong_is_one_message_before_anything_is_scored(trained, tmp_path, capsys):
    model, test = str(trained / "reward"), str(trained / "test.jsonl")

    def message(*argv):
        assert main(["report-card", *argv]) == 2
        return capsys.readouterr().err

    assert "dataset_name is missing" in message(model)
    assert "reward_model_path is missing" in message("--dataset_name", test)
    assert "holds report_card.json already" in message(model, "--dataset_name", test)
    assert "output_dir is missing" in message("math:fsum", "--dataset_name", test)
    assert "probe_rows=-1 is invalid" in message(model, "--dataset_name", test, "--probe_rows", "-1")
    new = ["--output_dir", str(tmp_path / "new")]
    assert "no such folder" in message(str(tmp_path / "no_model"), "--dataset_name", test, *new)
    leak = ["--train_dataset_name", test]
    assert "in the training set too" in message(model, "--dataset_name", test, *new, *leak)
    assert "as_messages=True is invalid" in message(model, "--dataset_name", test, *new, "--as_messages", "true")
    assert not (tmp_path / "new" / "report_card.json").exists()


# PPO


@pytest.mark.parametrize("word", ["good", "usable with care", "do not use"])
def test_the_verdict_is_printed_and_what_is_not_good_is_a_warning(word, reward_model, capsys, caplog):
    set_verdict(reward_model, word)
    check_report_cards([str(reward_model), "math:fsum"], required=False)
    assert (f"{word}: said by the card." in capsys.readouterr().out) == (word == "good")
    assert (f"{word}: said by the card." in caplog.text) == (word != "good")


def test_ppo_warns_of_a_reward_model_without_a_card(reward_model, ppo, caplog):
    (reward_model / "report_card.json").unlink()
    assert ppo(reward_model) == 0
    assert "nothing says how good it is" in caplog.text


@pytest.mark.parametrize("damage", ["missing", "do not use", "stale"])
def test_ppo_refuses_where_a_card_is_required(damage, reward_model, ppo, capsys, tmp_path):
    if damage == "missing":
        (reward_model / "report_card.json").unlink()
    elif damage == "stale":
        change_weights(reward_model / "adapter_model.safetensors")
    else:
        set_verdict(reward_model, damage)
    assert ppo(reward_model, "--require_report_card", "true") == 2
    assert "require_report_card=True refuses it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_usable_model_is_accepted_where_a_card_is_required(reward_model):
    set_verdict(reward_model, "usable with care")
    assert check_report_cards([str(reward_model)], required=True)[0].is_usable


def test_requiring_a_card_of_a_function_is_an_error(flags, write_rows, failing):
    rows = ["--dataset_name", write_rows(prompt_rows()), "--reward_funcs", "tiny:happy_reward"]
    assert "no reward is a model" in failing("ppo", *rows, *flags, *PPO_FLAGS, "--require_report_card", "true")


# Whose card it is


def change_weights(file: Path):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def test_a_card_of_other_weights_is_stale(reward_model):
    assert card_status(str(reward_model)).state != "stale"
    change_weights(reward_model / "adapter_model.safetensors")
    status = card_status(str(reward_model))
    assert status.state == "stale"
    assert not status.is_usable
    assert "made for other weights (adapter_model.safetensors differs)" in status.words


def test_the_merged_model_has_the_card_of_its_folder(reward_model):
    merged = reward_model / "merged"
    assert card_status(str(merged)).state == card_status(str(reward_model)).state
    change_weights(merged / "model.safetensors")
    assert card_status(str(merged)).state == "stale"
    assert card_status(str(reward_model)).state != "stale"


def test_a_file_that_is_no_card_is_an_error(reward_model, ppo, capsys):
    (reward_model / "report_card.json").write_text("{}", encoding="utf-8")
    assert ppo(reward_model) == 2
    assert "it is no report card" in capsys.readouterr().err


def test_a_reward_model_that_does_not_exist_is_no_missing_card(flags, write_rows, failing):
    rows = ["--dataset_name", write_rows(prompt_rows()), "--reward_model_path", "runs/no/such/model"]
    assert "there is no such folder" in failing("ppo", *rows, *flags, *PPO_FLAGS)
