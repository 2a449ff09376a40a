"""Wrong input gives one clear message (what, where, what to do), exit status 2, and leaves nothing behind."""

import json
from pathlib import Path

import pytest
from tiny import make_tokenizer
from tiny_data import PPO_FLAGS, conversational_pairs, prompt_rows

from hf_rlhf.cli import main


def test_empty_set(failing, flags, write_rows):
    message = failing("reward", "--dataset_name", write_rows([]), *flags)
    assert "rows.jsonl" in message
    assert "empty" in message or "no rows" in message


def test_missing_file(failing, flags, tmp_path):
    message = failing("reward", "--dataset_name", str(tmp_path / "none.jsonl"), *flags)
    assert "none.jsonl" in message


def test_missing_dataset_name(failing, flags):
    assert "dataset_name" in failing("reward", *flags)


def test_missing_column_names_the_columns_there_are(failing, flags, write_rows):
    rows = [{"prompt": "a cat", "chosen": "good", "rejectd": "bad"}] * 8
    message = failing("reward", "--dataset_name", write_rows(rows), *flags)
    assert "rejected" in message
    assert "rejectd" in message


def test_none_in_a_row_names_the_row(failing, flags, write_rows):
    rows = conversational_pairs()
    rows[5]["rejected"] = None
    message = failing("reward", "--dataset_name", write_rows(rows), *flags)
    assert 'column "rejected": None' in message
    assert "rows.jsonl:6" in message
    assert "skip_bad_rows" in message


def test_chosen_equal_to_rejected_everywhere(failing, flags, write_rows):
    rows = [row | {"rejected": row["chosen"]} for row in conversational_pairs()]
    message = failing("reward", "--dataset_name", write_rows(rows), *flags)
    assert "chosen" in message
    assert "16" in message


def test_broken_line_is_named(failing, flags, write_rows):
    file = write_rows(conversational_pairs(4))
    with open(file, "a", encoding="utf-8") as lines:
        lines.write('{"prompt": "a", \n')
    assert "rows.jsonl:5" in failing("reward", "--dataset_name", file, *flags)


@pytest.mark.parametrize("command", ["reward", "ppo"])
def test_set_smaller_than_a_batch(failing, flags, write_rows, command):
    rows = conversational_pairs(3) if command == "reward" else prompt_rows(3)
    extra = [*PPO_FLAGS, "--reward_funcs", "tiny:happy_reward"] if command == "ppo" else []
    message = failing(command, "--dataset_name", write_rows(rows), *flags, *extra)
    assert "3 rows" in message
    assert "4" in message


@pytest.mark.parametrize("command", ["reward", "ppo"])
def test_no_chat_template(failing, flags, write_rows, model_folder, command):
    make_tokenizer(chat_template=False).save_pretrained(model_folder)
    for name in ("chat_template.jinja",):
        (Path(model_folder) / name).unlink(missing_ok=True)
    rows = conversational_pairs() if command == "reward" else prompt_rows()
    extra = [*PPO_FLAGS, "--reward_funcs", "tiny:happy_reward"] if command == "ppo" else []
    message = failing(command, "--dataset_name", write_rows(rows), *flags, *extra)
    assert "chat template" in message
    assert "--chat_template_path" in message


def test_overlong_prompt(failing, flags, write_rows):
    rows = [*prompt_rows(15), {"prompt": [{"role": "user", "content": "cat " * 60}]}]
    message = failing(
        "ppo", "--dataset_name", write_rows(rows), "--reward_funcs", "tiny:happy_reward", *flags, *PPO_FLAGS
    )
    assert "max_prompt_length=32" in message
    assert "overlong_prompts" in message
    assert "rows.jsonl:16" in message


@pytest.mark.parametrize("where", ["yaml", "flag"])
def test_unknown_key_has_a_suggestion(failing, flags, tmp_path, where):
    if where == "yaml":
        file = tmp_path / "ppo.yaml"
        file.write_text("kl_coeff: 0.1\n", encoding="utf-8")
        message = failing("ppo", "--config", str(file), *flags)
        assert "ppo.yaml" in message
    else:
        message = failing("ppo", *flags, "--kl_coeff", "0.1")
    assert 'unknown key "kl_coeff"' in message
    assert 'did you mean "kl_coef"' in message


def test_wrong_type_and_broken_yaml(failing, flags, tmp_path):
    assert "kl_coef" in failing("ppo", *flags, "--kl_coef", "much")
    file = tmp_path / "ppo.yaml"
    file.write_text("kl_coef: [0.1\n", encoding="utf-8")
    assert "not valid YAML" in failing("ppo", "--config", str(file), *flags)


def test_a_wrong_value_of_a_file_is_named_with_its_line(failing, flags, tmp_path):
    file = tmp_path / "ppo.yaml"
    file.write_text("kl_coef: 0.1\nmax_steps: forty\n", encoding="utf-8")
    message = failing("ppo", "--config", str(file), *flags)
    assert f"max_steps in {file}:2: invalid int value: 'forty'" in message
    message = failing("ppo", "--config", str(file), *flags, "--max_steps", "fifty")
    assert "ppo.yaml" not in message
    file.write_text("kl_coef: 0.1\n\nmax_steps: [40]\n", encoding="utf-8")
    assert f"in {file}:3 does not fit" in failing("ppo", "--config", str(file), *flags)


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--temperature", "0"), ("--top_p", "1.5"), ("--num_ppo_epochs", "0"), ("--kl_estimator", "k9")],
)
def test_impossible_settings(failing, flags, write_rows, flag, value):
    message = failing("ppo", "--dataset_name", write_rows(prompt_rows()), *flags, flag, value)
    assert f"{flag.removeprefix('--')}={value}" in message.replace("0.0", "0")


def test_reward_model_whose_head_was_never_trained(failing, flags, write_rows, model_folder):
    message = failing(
        "ppo", "--dataset_name", write_rows(prompt_rows()), "--reward_model_path", model_folder, *flags, *PPO_FLAGS
    )
    assert "no trained score head" in message
    assert "hf-rlhf reward" in message


def test_no_reward_and_a_reward_that_is_not_there(failing, flags, write_rows):
    rows = write_rows(prompt_rows())
    assert "reward_model_path" in failing("ppo", "--dataset_name", rows, *flags, *PPO_FLAGS)
    message = failing("ppo", "--dataset_name", rows, "--reward_funcs", "tiny:no_such", *flags, *PPO_FLAGS)
    assert "tiny:no_such" in message


def test_unknown_command(capsys):
    assert main(["pppo"]) == 2
    assert "quickstart" in capsys.readouterr().err


def test_a_folder_with_a_run_in_it_is_left_alone(capsys, flags, write_rows, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.jsonl").write_text('{"step": 1}\n', encoding="utf-8")
    status = main(["ppo", "--dataset_name", write_rows(prompt_rows()), "--reward_funcs", "tiny:happy_reward", *flags])
    assert status == 2
    assert "holds a run already" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "metrics.jsonl").read_text()) == {"step": 1}


@pytest.mark.parametrize("command", ["sft", "reward"])
def test_rows_beyond_a_table_of_positions(failing, flags, write_rows, tmp_path, command):
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = make_tokenizer()
    shape = {"n_positions": 12, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": None}
    shape |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    rows = [{"prompt": "the cat " * 6, "chosen": " sat", "rejected": " ran", "completion": " sat"}] * 8
    rows = [row | {"chosen": f" sat {n}"} for n, row in enumerate(rows)]
    argv = [command, "--dataset_name", write_rows(rows), *flags, "--model_name_or_path", str(tmp_path / "short")]
    message = failing(*argv)
    assert "max_length=1024 is invalid: a row of the training set has 1" in message
    assert "Set max_length to 12 or less" in message
