"""The folder of an evaluation: never that of a model or a run, and never completions of other weights."""

import pytest
import torch
from compared_models import POSITIONS, held_out_rows, save, write_jsonl
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from tiny import make_lora, make_model, make_tokenizer, perturb

from hf_rlhf.cli import main


@pytest.fixture
def flags(tmp_path):
    rows = write_jsonl(tmp_path / "held_out.jsonl", held_out_rows(4))
    return [
        "--dataset_name", rows, "--use_cpu", "true", "--dtype", "float32", "--reward_funcs", "tiny:happy_reward",
        "--max_completion_length", "4",
    ]  # fmt: skip


@pytest.fixture
def base(tmp_path):
    tokenizer = make_tokenizer()
    return save(tmp_path / "base", make_model(tokenizer, max_position_embeddings=POSITIONS), tokenizer)


def test_the_folder_of_the_policy_is_refused_before_a_file_of_it_changes(base, flags, tmp_path, failing):
    (tmp_path / "base" / "config.yaml").write_text("model_name_or_path: elsewhere\n")
    message = failing("evaluate", base, "--baseline", base, "--output_dir", base, *flags)
    assert "it holds a model or a run" in message
    assert (tmp_path / "base" / "config.yaml").read_text() == "model_name_or_path: elsewhere\n"


def test_completions_of_an_adapter_are_not_those_of_another_base(base, flags, tmp_path, failing):
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    adapted = perturb(
        get_peft_model(make_model(tokenizer, max_position_embeddings=POSITIONS), make_lora()), only="lora"
    )
    adapted.peft_config["default"].base_model_name_or_path = base
    policy = save(tmp_path / "policy", adapted, tokenizer)
    argv = ["evaluate", policy, "--output_dir", str(tmp_path / "kept"), *flags]
    assert main(argv) == 0
    weights = load_file(f"{base}/model.safetensors")
    save_file({name: tensor + 0.5 for name, tensor in weights.items()}, f"{base}/model.safetensors", {"format": "pt"})
    assert "holds completions of policy with other weights" in failing(*argv)
