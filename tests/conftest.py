"""Fixtures of tiny models, made by `tiny.py`, and of the files and flags that a user gives. None needs a network."""

import json

import pytest
from tiny import make_model, make_prompts, make_tokenizer

from hf_rlhf.cli import main


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def model(tokenizer):
    return make_model(tokenizer)


@pytest.fixture
def prompts():
    """Sixteen conversational prompts of different lengths, with one extra column."""
    return make_prompts()


@pytest.fixture
def model_folder(tmp_path):
    """A tiny causal LM with its tokenizer."""
    tokenizer = make_tokenizer()
    folder = tmp_path / "model"
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def write_rows(tmp_path):
    """Write rows as JSON lines; returns the path."""

    def write(rows, name="rows.jsonl"):
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(file)

    return write


@pytest.fixture
def flags(model_folder, tmp_path):
    """Command-line flags common to every recipe."""
    return [
        "--model_name_or_path", model_folder, "--dtype", "float32", "--lora_r", "4",
        "--output_dir", str(tmp_path / "out"), "--per_device_train_batch_size", "4", "--report_to", "none",
        "--disable_tqdm", "true", "--use_cpu", "true", "--save_strategy", "no",
    ]  # fmt: skip


@pytest.fixture
def failing(capsys, tmp_path):
    """Run a command that must fail; returns its message."""

    def run(*argv):
        status = main(list(argv))
        output = capsys.readouterr()
        assert status == 2, output.err
        assert output.err.count("error:") == 1
        assert "Traceback" not in output.err
        assert not (tmp_path / "out").exists(), "something was written"
        return output.err

    return run
