"""`--lora_layers` from the first stage to the last: start, reward model, critic and policy leave one trunk."""

import json

from peft import PeftConfig
from tiny_data import PPO_FLAGS, conversational_pairs, prompt_rows

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
