"""Runs that log trajectories, on as many ranks as torchrun starts: `torchrun ... trajectories_script.py FOLDER`."""

import os
import sys
from pathlib import Path

import torch
from environments.games import TwoTurns
from invariance.runs import number_reward
from tiny import make_model, make_tokenizer, make_trainer

RUNS = {
    "answers": {"reward": number_reward, "num_generations": 2, "num_logged_trajectories": 7},
    "episodes": {"trainer_kwargs": {"environment": TwoTurns}},
}


def train(folder, name):
    """Train a run of two iterations of eight completions, over all ranks."""
    make_trainer(
        Path(folder) / name,
        model=make_model(make_tokenizer(), max_position_embeddings=256),
        per_device_train_batch_size=4 // int(os.environ.get("WORLD_SIZE", "1")),
        optim="sgd",
        learning_rate=0.2,
        log_trajectories=1,
        **RUNS[name],
    ).train()


if __name__ == "__main__":
    for run in RUNS:
        train(sys.argv[1], run)
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads outlive the group, and can abort an interpreter that ends in their midst
