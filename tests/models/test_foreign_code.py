"""Code that comes with a model, and weights that are pickles: neither runs, on any path that loads."""

import contextlib
import json
import os
import pickle

import pytest
from peft import get_peft_model
from tiny import make_lora, make_model, make_tokenizer
from tiny_data import conversational_pairs

from hf_rlhf.cli import main
from hf_rlhf.data import load_rows
from hf_rlhf.errors import InputError
from hf_rlhf.models.adapted import load_policy
from hf_rlhf.models.load import load_causal_lm, load_sequence_classifier, load_tokenizer, read_config
from hf_rlhf.models.reward_model import load_reward_model

LOADERS = [
    load_causal_lm,
    lambda folder: load_policy(folder, adds_adapter=True),
    load_sequence_classifier,
    load_tokenizer,
    load_reward_model,
    read_config,
]
each_loader = pytest.mark.parametrize(
    "load", LOADERS, ids=["causal", "policy", "classifier", "tokenizer", "reward", "config"]
)


class Canary:
    """A pickle that leaves a file behind when it is read."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (os.mkdir, (str(self.file),))


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "ran"


@pytest.fixture
def with_code(tmp_path, canary):
    """A model folder whose config, model and tokenizer come as Python files."""
    folder = tmp_path / "model"
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "mine.py").write_text(
        f"from pathlib import Path\nPath({str(canary)!r}).touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification,"
        " PreTrainedTokenizerFast\nclass MineConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class Mine(LlamaForCausalLM):\n    config_class = MineConfig\n"
        "class MineClassifier(LlamaForSequenceClassification):\n    config_class = MineConfig\n"
        "class MineTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    config = json.loads((folder / "config.json").read_text())
    autos = {"AutoConfig": "Config", "AutoModelForCausalLM": "", "AutoModelForSequenceClassification": "Classifier"}
    config |= {"model_type": "mine", "auto_map": {auto: f"mine.Mine{name}" for auto, name in autos.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    tokens |= {"auto_map": {"AutoTokenizer": [None, "mine.MineTokenizer"]}, "tokenizer_class": "MineTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    return str(folder)


@each_loader
def test_code_of_a_model_does_not_run(load, with_code, canary):
    with pytest.raises(InputError) as refusal:
        load(with_code)
    assert with_code in str(refusal.value)
    assert not canary.exists()


def test_code_of_a_model_runs_where_it_is_asked_for(with_code, canary):
    assert type(load_causal_lm(with_code, dtype="float32", trust_remote_code=True)).__name__ == "Mine"
    assert canary.exists()


@pytest.mark.parametrize(
    ("command", "asked"), [("reward", False), ("sft", False), ("sft", True), ("data", False), ("data", True)]
)
def test_the_recipes_run_code_of_a_model_only_where_it_is_asked_for(with_code, canary, tmp_path, command, asked):
    rows = [pair | {"completion": pair["chosen"]} for pair in conversational_pairs(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["data", "reward"] if command == "data" else [command]
    argv += ["--model_name_or_path", with_code, "--dtype", "float32"]
    argv += ["--dataset_name", str(tmp_path / "rows.jsonl"), "--output_dir", str(tmp_path / "out"), "--use_cpu", "true"]
    argv += ["--max_steps", "1", "--per_device_train_batch_size", "4", "--report_to", "none", "--save_strategy", "no"]
    status = main([*argv, "--trust_remote_code", str(asked).lower()])
    assert canary.exists() == asked
    assert status == (0 if asked else 2)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.ckpt", "pytorch_model.pt"])
@pytest.mark.parametrize(
    "load",
    [load_causal_lm, load_sequence_classifier, load_reward_model],
    ids=["causal", "classifier", "reward"],
)
def test_weights_that_are_a_pickle_are_not_read(load, name, tmp_path, canary):
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / name).write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(InputError) as refusal:
        load(str(tmp_path / "model"))
    assert name in str(refusal.value)
    assert "pickle" in str(refusal.value)
    assert not canary.exists()


def test_an_adapter_that_is_a_pickle_is_not_read(tmp_path, canary):
    make_model(make_tokenizer()).save_pretrained(tmp_path / "model")
    base = load_causal_lm(str(tmp_path / "model"), dtype="float32")
    get_peft_model(base, make_lora()).save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(InputError, match=r"adapter_model\.bin, a pickle"):
        load_policy(str(tmp_path / "adapter"), adds_adapter=False)
    with pytest.raises(InputError):
        load_reward_model(str(tmp_path / "adapter"))
    assert not canary.exists()


def test_a_data_set_that_is_a_script_does_not_run(tmp_path, canary):
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "rows.py").write_text(f"from pathlib import Path\nPath({str(canary)!r}).touch()\n")
    for name in (str(folder), str(folder / "rows.py")):
        with pytest.raises(InputError):
            load_rows(name)
    assert not canary.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"no json", b"[]", b"\xff\xfe", b'{"model_type": "no_such_model"}', b'{"model_type": 3}', b"{}"],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_a_damaged_file_of_a_model_is_an_input_error_or_harmless(tmp_path, name, content):
    tokenizer = make_tokenizer()
    folder = tmp_path / "model"
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / name).write_bytes(content)
    load = load_tokenizer if name.startswith("tokenizer") else load_causal_lm
    told = name != "model.safetensors"
    with contextlib.suppress(InputError):
        load(str(folder))
        assert told, "weights that are none were taken"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_weights_that_were_cut_off_are_told(tmp_path, share):
    folder = tmp_path / "model"
    make_model(make_tokenizer()).save_pretrained(folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match="no model could be loaded"):
        load_causal_lm(str(folder))


def test_the_canary_is_one(canary):
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists()
