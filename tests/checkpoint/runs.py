"""Tiny runs of PPO and of a reward model that are killed in forked processes and started again."""

import gc
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from tiny import happy_reward, make_lora, make_model, make_tokenizer, make_trainer, metrics_of
from tiny_data import plain_pairs

SAVES = {"save_strategy": "steps", "save_total_limit": 2, "report_to": "none", "disable_tqdm": True, "use_cpu": True}


def moody_reward(prompts, completions, **columns):
    """A score that draws from every global generator, so that a resume has to find each where it stood."""
    import numpy as np

    noise = random.random() + float(np.random.rand()) + torch.rand(()).item()
    return [score + noise for score in happy_reward(prompts, completions)]


def train_ppo(folder, resume="auto", **flags):
    """Four iterations with every state that a checkpoint has to carry."""
    flags = {
        "max_steps": 8,
        "num_ppo_epochs": 1,
        "save_steps": 2,
        "kl_target": 0.5,
        "kl_horizon": 100,
        "use_score_scaling": True,
        "use_score_norm": True,
        "ref_model_sync_iterations": 2,
        "critic_learning_rate": 5e-3,
        **SAVES,
        **flags,
    }
    trainer = make_trainer(folder, reward=moody_reward, **flags)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    return trainer


def train_reward(folder, resume="auto", **flags):
    """Two epochs of six updates, logged at every other one and saved at every third, with dropout."""
    from transformers import LlamaForSequenceClassification, set_seed

    from hf_rlhf.recipes.arguments import RewardTrainingArguments
    from hf_rlhf.reward_modeling.training import make_reward_trainer, save_trained

    tokenizer = make_tokenizer()
    config = make_model(tokenizer).config
    config.num_labels = 1
    set_seed(3)
    flags = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2, "logging_steps": 2,
             "save_steps": 3, "learning_rate": 1e-2, "max_length": 64, **SAVES, **flags}  # fmt: skip
    trainer = make_reward_trainer(
        LlamaForSequenceClassification(config),
        tokenizer,
        RewardTrainingArguments(output_dir=str(folder), **flags),
        Dataset.from_list(plain_pairs(24)),
        peft_config=make_lora(lora_dropout=0.2),
    )
    trainer.train(resume_from_checkpoint=resume)
    save_trained(trainer, folder)
    return trainer


RUNS = {"ppo": train_ppo, "reward": train_reward}


def in_child(work, *, kill_after=None, stderr=os.devnull):
    """Do `work` in a forked process, and kill it by SIGKILL after some seconds; returns its wait status.

    Forking saves the seconds of imports. No thread of torch may run before, or the child would wait for it.
    """
    assert torch.get_num_threads() == 1
    gc.freeze()  # a trainer collects garbage, which need not go through all that is imported
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            null = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(null, 1)
            os.dup2(null, 2)
            PeftModel.create_or_update_model_card = lambda *_: None  # compiles a template: half of the time
            work()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    deadline = None if kill_after is None else time.monotonic() + kill_after
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        time.sleep(0.002)


def outcome(folder):
    """What must be the same bits: final weights and every row of the logs, without the columns that measure time."""
    folder = Path(folder)
    weights = {
        str(file.relative_to(folder)): {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}
        for file in sorted(folder.glob("*.safetensors"))
    }
    samples = folder / "samples.jsonl"
    return weights, metrics_of(folder), samples.read_text() if samples.exists() else None


def kill_and_resume(kind, folder, kills, seed=0):
    """Kill `kills` runs, each at a random moment, and start each again until it ends.

    Returns how many ended as the run that was not killed, and how many of the kills met a run that was not over.
    """
    train = RUNS[kind]
    in_child(lambda: train(folder / "warm"))  # what is compiled or cached once
    begin = time.monotonic()
    assert in_child(lambda: train(folder / "whole"), stderr=folder / "whole.txt") == 0, (
        folder / "whole.txt"
    ).read_text()
    seconds = time.monotonic() - begin
    expected = outcome(folder / "whole")
    draws = random.Random(seed)
    same = met = 0
    for number in range(kills):
        place = folder / str(number)
        status = in_child(lambda place=place: train(place), kill_after=draws.uniform(0, seconds))
        met += os.WIFSIGNALED(status)
        errors = folder / f"{number}.txt"
        assert in_child(lambda place=place: train(place), stderr=errors) == 0, errors.read_text()
        same += outcome(place) == expected
    return same, met
