"""Train the tiny model for two iterations; under torchrun, on as many ranks as it starts.

    torchrun --nproc_per_node 2 ppo_script.py FOLDER WORLD_SIZE [NAME=NUMBER ...]

The flags go to `PPOConfig`. The final policy is saved in FOLDER, beside metrics.jsonl.
"""

import sys

import torch
from tiny import make_prompts, make_trainer, perturb


def number_reward(prompts, completions, number, **columns):
    """A score that needs the right row's column, and leaves some rows unscored."""
    texts = [completion[0]["content"] for completion in completions]
    return [None if n % 5 == 0 else text.split().count("happy") - n / 10 for n, text in zip(number, texts, strict=True)]


def train(folder, **flags):
    """Two iterations of sixteen completions, evaluated on a set whose size no number of ranks divides."""
    flags = {
        "per_device_train_batch_size": 8,
        "max_steps": 8,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "missing_eos_penalty": 0.3,
        "optim": "sgd",
        "learning_rate": 0.5,
    } | flags
    trainer = make_trainer(folder, reward=number_reward, trainer_kwargs={"eval_dataset": make_prompts(5)}, **flags)
    perturb(trainer.policy, only="lora")
    trainer.train()
    trainer.save_model(str(folder))
    return trainer


if __name__ == "__main__":
    folder, world_size, *flags = sys.argv[1:]
    trainer = train(folder, **{name: int(value) for name, value in (flag.split("=") for flag in flags)})
    assert trainer.accelerator.num_processes == int(world_size), trainer.accelerator.num_processes
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
