"""Rounds of a tiny model on a few prompts of words that it knows."""

import json

from tiny import WORDS, make_model, make_tokenizer

from hf_rlhf.cli.parsing import parse_arguments
from hf_rlhf.recipes.arguments import ModelArguments
from hf_rlhf.rounds.arguments import RoundsArguments

FLAGS = {
    "rounds": 2,
    "annotator": "cheerful",
    "annotator_tie_margin": 0,
    "held_out_prompts": 6,
    "questions": 16,
    "held_out_questions": 6,
    "comparisons": 4,
    "candidates_per_prompt": 2,
    "max_completion_length": 5,
    "reward_batch_size": 4,
    "rollout_batch_size": 8,
    "ppo_iterations": 2,
    "num_ppo_epochs": 1,
    "ppo_learning_rate": 5e-2,
    "lora_target_modules": "q_proj",
    "dtype": "float32",
    "reward_options": '{"save_steps": 1}',
}


DONE = {"choose": "uncertainty", "num_annotators": 2, "overlap": 2, "annotator_taste": 0.01}
"""Flags of the run that `conftest.py` makes."""


def make_inputs(folder):
    """Write a tiny model and prompts, once."""
    if (folder / "base").exists():
        return
    tokenizer = make_tokenizer()
    make_model(tokenizer, max_position_embeddings=256).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    texts = [" ".join((WORDS * 3)[place:][: 2 + place % 3]) for place in range(22)]
    rows = [{"prompt": text, "reference": "happy cat"} for text in texts]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def arguments(folder, name="rounds", **flags):
    """Return the arguments of `run_rounds`, as the command line gives them."""
    make_inputs(folder)
    given = {
        "output_dir": folder / name,
        "dataset_name": folder / "prompts.jsonl",
        "model_name_or_path": folder / "base",
        **FLAGS,
        **flags,
    }
    argv = [word for flag, value in given.items() if value is not None for word in (f"--{flag}", str(value))]
    return parse_arguments([RoundsArguments, ModelArguments], argv, "test")
