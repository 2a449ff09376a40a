"""The recipes' starting points: adapters of the stage before, fp32 if all is trained, another model's template."""

import json
import math

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tiny import make_model, make_tokenizer
from tiny_data import PPO_FLAGS, conversational_pairs, prompt_rows

from hf_rlhf.cli import main
from hf_rlhf.models.adapted import load_policy, load_reward_start
from hf_rlhf.models.load import load_tokenizer
from hf_rlhf.models.reward_model import load_reward_model
from hf_rlhf.rewards.learned import LearnedReward


def demonstrations():
    return [row | {"completion": [{"role": "assistant", "content": "happy cat"}]} for row in prompt_rows()]


def first_loss(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return next(row["loss"] for row in rows if "loss" in row)


def scores_of(folder, rows):
    scorer, tokenizer = load_reward_model(str(folder), dtype="float32")
    return LearnedReward(scorer, tokenizer)([row["prompt"] for row in rows], [row["chosen"] for row in rows])


@pytest.fixture
def stage(flags, tmp_path):
    """Run a stage on rows from its start; returns its folder."""

    def run(name, rows, start, folder, *more):
        argv = [name, "--dataset_name", rows, *flags, "--model_name_or_path", str(start), "--output_dir"]
        assert main([*argv, str(tmp_path / folder), "--max_steps", "3", "--learning_rate", "1e-2", *more]) == 0
        return tmp_path / folder

    return run


def test_a_reward_model_from_an_sft_adapter(stage, write_rows, tmp_path, model_folder, capsys):
    """It starts from the SFT, says so, and loads by itself, on the base that both have."""
    pairs = write_rows(conversational_pairs(), "pairs.jsonl")
    sft = stage("sft", write_rows(demonstrations(), "sft.jsonl"), model_folder, "sft")
    still = ["--learning_rate", "0", "--logging_steps", "1"]
    capsys.readouterr()
    reward = stage("reward", pairs, sft, "reward", *still)
    assert f"start: the adapter {sft} on {model_folder}" in capsys.readouterr().out
    saved, start = (load_file(folder / "adapter_model.safetensors") for folder in (reward, sft))
    assert set(start) == {key for key in saved if "score" not in key}
    assert all(torch.equal(saved[key], start[key]) for key in start)
    assert json.loads((reward / "adapter_config.json").read_text())["base_model_name_or_path"] == model_folder
    card = str(ModelCard.load(reward / "README.md"))
    assert 'from_pretrained("model"' in card  # the base, by the last part of its path
    assert "started from the adapter" in card
    assert "sft" in card

    trained = stage("reward", pairs, reward, "trained", "--max_steps", "30")
    again = stage("reward", pairs, trained, "again", *still)
    assert first_loss(again) < 0.5 * math.log(2)
    rows = conversational_pairs(4)
    assert scores_of(again, rows) == pytest.approx(scores_of(trained, rows), abs=1e-5)
    merged, tokenizer = load_reward_model(str(trained / "merged"), dtype="float32")
    of_merged = LearnedReward(merged, tokenizer)([row["prompt"] for row in rows], [row["chosen"] for row in rows])
    assert of_merged == pytest.approx(scores_of(trained, rows), abs=1e-4)


def test_all_weights_of_base_and_adapter_are_trained_in_fp32(stage, write_rows, model_folder, monkeypatch):
    """`use_peft=false` from an adapter, and bf16 that would have lost nearly every update."""
    sft = stage("sft", write_rows(demonstrations(), "sft.jsonl"), model_folder, "sft")
    whole = ["--use_peft", "false", "--dtype", "bfloat16", "--learning_rate", "1e-4"]
    reward = stage("reward", write_rows(conversational_pairs(), "pairs.jsonl"), sft, "reward", *whole)
    policy = stage("sft", write_rows(demonstrations(), "sft.jsonl"), sft, "policy", *whole)
    merged = load_policy(str(sft), adds_adapter=False, merges_adapter=True).state_dict()
    for folder in (reward, policy):
        assert not (folder / "adapter_config.json").exists()
        saved = load_file(folder / "model.safetensors")
        name = "model.layers.1.mlp.up_proj.weight"
        assert saved[name].dtype == torch.float32
        assert (saved[name] != merged[name]).float().mean() > 0.9
        torch.testing.assert_close(saved[name], merged[name], rtol=0, atol=1e-3)


def test_what_a_reward_adapter_trains_is_fp32_on_a_bf16_base(stage, write_rows, model_folder):
    folder = stage(
        "reward", write_rows(conversational_pairs()), model_folder, "reward", "--dtype", "bfloat16", "--bf16", "false"
    )
    weights = load_file(folder / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    score = weights["base_model.model.score.weight"]
    assert not torch.equal(score, score.bfloat16().float())


@pytest.fixture
def base_folder(tmp_path):
    """A base whose tokenizer has no chat tokens, and ends a text by `</s>`."""
    from tiny import WORDS
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "</s>", "system", "user", "assistant", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="<pad>")
    make_model(fast).save_pretrained(tmp_path / "base")
    fast.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def test_the_template_of_a_tokenizer_brings_its_tokens(stage, write_rows, tmp_path, model_folder, base_folder, capsys):
    """Each gets trained rows of its own, in every stage, and what was saved scores the same after loading."""
    template = ["--chat_template_path", model_folder]
    sft = stage("sft", write_rows(demonstrations(), "sft.jsonl"), base_folder, "sft", *template)
    tokenizer = load_tokenizer(str(sft))
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [28, 29]
    assert (tokenizer.eos_token, len(tokenizer)) == ("<|im_end|>", 30)
    assert "base.resize_token_embeddings(30)" in str(ModelCard.load(sft / "README.md"))
    policy = load_policy(str(sft), adds_adapter=True, dtype="float32")
    assert policy.get_input_embeddings().weight.shape == (30, 32)
    for end in (policy.get_input_embeddings(), policy.get_output_embeddings()):
        rows, original = end.weight, end.original_module.weight
        assert (rows[28:] != original[28:]).all()
        assert torch.equal(rows[:28], original[:28])

    pairs = write_rows(conversational_pairs(), "pairs.jsonl")
    reward = stage("reward", pairs, base_folder, "reward", *template)
    assert json.loads((reward / "evaluation.json").read_text())["reload_gap"] < 1e-5
    ppo = ["--reward_model_path", str(reward), *PPO_FLAGS]
    out = stage("ppo", write_rows(prompt_rows(), "prompts.jsonl"), sft, "ppo", *ppo)
    assert load_policy(str(out), adds_adapter=True).config.vocab_size == 30

    merged, _ = load_reward_model(str(reward / "merged"), dtype="float32")
    assert merged.model.config.vocab_size == 30
    alone, _ = load_reward_model(str(reward), dtype="float32")
    ids = torch.tensor([[5, 28, 7, 29]])
    torch.testing.assert_close(merged(ids, torch.ones_like(ids)), alone(ids, torch.ones_like(ids)))

    refused = ["--chat_template_path", base_folder]
    for name, start, more, reason in (
        ("sft", sft, refused, "has no chat template"),
        ("ppo", base_folder, [*template, *ppo], "which the model has never seen"),
        ("reward", plain_adapter(base_folder, tmp_path), template, "does not train"),
    ):
        file = {"sft": "sft.jsonl", "ppo": "prompts.jsonl", "reward": "pairs.jsonl"}[name]
        argv = [name, "--dataset_name", str(tmp_path / file), "--output_dir", str(tmp_path / "no"), *more]
        capsys.readouterr()
        assert main([*argv, "--model_name_or_path", str(start), "--per_device_train_batch_size", "4"]) == 2
        assert reason in capsys.readouterr().err


def plain_adapter(base, tmp_path):
    from peft import get_peft_model
    from tiny import make_lora

    from hf_rlhf.models.load import load_causal_lm

    get_peft_model(load_causal_lm(base), make_lora()).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_whole_model_learns_the_tokens_of_a_template(stage, write_rows, model_folder, base_folder):
    whole = ["--chat_template_path", model_folder, "--use_peft", "false"]
    folder = stage("reward", write_rows(conversational_pairs()), base_folder, "reward", *whole)
    again = load_reward_start(str(folder), adds_adapter=False)
    assert again.config.vocab_size == 30
    assert json.loads((folder / "evaluation.json").read_text())["reload_gap"] < 1e-5


def test_a_run_with_a_template_resumes(stage, write_rows, model_folder, base_folder):
    """With the rows that it had trained: killed after two updates of three, it ends in the same bits."""
    rows = write_rows(demonstrations())
    template = ["--chat_template_path", model_folder, "--save_strategy", "steps", "--save_steps", "2"]
    whole = stage("sft", rows, base_folder, "whole", *template)
    stage("sft", rows, base_folder, "parts", *template, "--max_steps", "3")
    (whole.parent / "parts" / "adapter_model.safetensors").unlink()
    parts = stage(
        "sft", rows, base_folder, "parts", *template, "--resume", str(whole.parent / "parts" / "checkpoint-2")
    )
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (parts, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_quickstart_wants_a_whole_model(model_folder, tmp_path, capsys):
    adapter = plain_adapter(model_folder, tmp_path)
    make_tokenizer().save_pretrained(adapter)
    argv = ["quickstart", "--model_name_or_path", str(adapter), "--output_dir", str(tmp_path / "quick")]
    assert main(argv) == 2
    assert "is an adapter of" in capsys.readouterr().err
