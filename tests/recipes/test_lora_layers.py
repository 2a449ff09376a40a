"""`--lora_layers` from the first stage to the last, and `--num_layers_unfrozen`: all roles leave one trunk."""

import json

import torch
from peft import PeftConfig
from tiny import snapshot
from tiny_data import PPO_FLAGS, conversational_pairs, prompt_rows
from transformers import AutoModelForCausalLM

from hf_rlhf.cli import main


def test_stages_on_the_same_blocks_leave_a_trunk(flags, write_rows, tmp_path, capsys):
    """The policy starts from an adapter and the critic from the reward model, all in the last of two blocks."""
    first = flags.index("--output_dir") + 1
    name = flags.index("--model_name_or_path") + 1
    folders = {stage: str(tmp_path / stage) for stage in ("sft", "reward", "ppo")}

    def stage(command, start, *argv):
        own = [*flags, "--lora_layers", "0.5", "--max_steps", "2", *argv]
        own[first], own[name] = folders[command], start
        assert main([command, *own]) == 0

    texts = [{"messages": [*row["prompt"], *row["chosen"]]} for row in conversational_pairs()]
    stage("sft", flags[name], "--dataset_name", write_rows(texts, "texts.jsonl"))
    stage("reward", flags[name], "--dataset_name", write_rows(conversational_pairs(), "pairs.jsonl"))
    rewards = ["--reward_model_path", folders["reward"], "--critic", "adapter", "--critic_path", folders["reward"]]
    capsys.readouterr()
    stage("ppo", folders["sft"], "--dataset_name", write_rows(prompt_rows(), "prompts.jsonl"), *PPO_FLAGS, *rewards)
    assert "trunk: the lowest 1 of 2 blocks" in capsys.readouterr().out
    for folder in (*folders.values(), f"{folders['ppo']}/critic"):
        config = PeftConfig.from_pretrained(folder)
        assert config.layers_to_transform == [1]
        assert "mlp.down_proj" in config.target_modules
    metrics = [json.loads(line) for line in (tmp_path / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["objective/kl"] == 0  # of a policy that begins as its reference


def test_a_run_that_trains_the_weights_of_the_last_block(flags, write_rows, capsys):
    rows = write_rows(prompt_rows(), "prompts.jsonl")
    own = ["--use_peft", "false", "--num_layers_unfrozen", "1", "--reward_funcs", "tiny:happy_reward"]
    assert main(["ppo", *flags, "--dataset_name", rows, *PPO_FLAGS, *own]) == 0
    printed = capsys.readouterr().out
    assert "frozen (num_layers_unfrozen=1); the reference shares the frozen ones\n" in printed
    assert "trunk: the lowest 1 of 2 blocks" in printed
    start, end = (flags[flags.index(name) + 1] for name in ("--model_name_or_path", "--output_dir"))
    before, after = (snapshot(AutoModelForCausalLM.from_pretrained(folder)) for folder in (start, end))
    same = {name for name, weight in before.items() if torch.equal(weight, after[name])}
    assert same == {name for name in before if "embed_tokens" in name or ".layers.0." in name}
