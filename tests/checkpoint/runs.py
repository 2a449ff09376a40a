"""Tiny runs of PPO and of a reward model that are killed in forked processes and started again."""

import gc
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import sharding_on_cpu
import torch
from datasets import Dataset
from invariance.runs import classifier, number_reward
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny import (
    happy_reward,
    make_lora,
    make_model,
    make_prompts,
    make_tokenizer,
    make_trainer,
    metrics_of,
    perturb,
)
from tiny_data import plain_pairs, prompt_rows
from transformers import LlamaForSequenceClassification

from hf_rlhf.ppo.config import PPOConfig

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
        "reward_clips": [1.5],
        "reward_normalize": ["true"],
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
    from transformers import set_seed

    from hf_rlhf.recipes.arguments import RewardTrainingArguments
    from hf_rlhf.training.trl_setup import make_reward_trainer, save_trained

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


def train_ppo_on_ranks(folder, resume="auto", **flags):
    """`train_ppo` on two ranks, whose completions together are as many."""
    return train_ppo(folder, resume, per_device_train_batch_size=2, **flags)


RUNS = {"ppo": train_ppo, "reward": train_reward, "ppo under FSDP2": train_ppo_on_ranks}
ON_RANKS = ("ppo under FSDP2",)


OF_TRL = {"max_length": 64, "bf16": False}
ADAMW = {"optim": "adamw_torch", "adam_epsilon": 1e-2}
"""An optimizer with a state, and an epsilon with which a gradient that is all rounding does not move a weight."""


def write_inputs(folder):
    """A tiny model and rows for the recipes; their runs write beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [{"text": row["prompt"] + row["chosen"]} for row in plain_pairs(24)]
    for name, rows in (("pairs", plain_pairs(24)), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(7)  # of the fresh score head
    rewarding = get_peft_model(
        LlamaForSequenceClassification.from_pretrained(folder / "model", num_labels=1),
        make_lora(task_type="SEQ_CLS", modules_to_save=["score"], target_modules=["q_proj", "v_proj"]),
    )
    perturb(rewarding, only="lora", scale=0.3)
    rewarding.save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    prompts = "".join(json.dumps(row) + "\n" for row in prompt_rows())
    (folder / "prompts.jsonl").write_text(prompts)


def _share_of_eight():
    return 8 // int(os.environ.get("WORLD_SIZE", "1"))


def _recipe_flags(folder, rows, resume, **launch):
    """Flags of a recipe; one that is None is omitted."""
    inputs = Path(folder).parent
    flags = {"model_name_or_path": inputs / "model", "dataset_name": inputs / rows, "dtype": "float32", "resume": resume,
             "output_dir": folder, "max_steps": 8, "logging_steps": 2, "save_steps": 4, "learning_rate": 1e-2,
             "per_device_train_batch_size": _share_of_eight(), "lora_dropout": 0, "report_to": "none",
             "disable_tqdm": True, **ADAMW, **launch}  # fmt: skip
    return [word for flag, value in flags.items() if value is not None for word in (f"--{flag}", str(value))]


def _parsed(kinds, flags):
    from hf_rlhf.cli.parsing import parse_arguments

    return parse_arguments(kinds, flags, "test")


def reward_recipe(*flags):
    """`hf-rlhf reward` of 8 updates; the trained score head is one of `modules_to_save`."""

    def run(folder, resume="auto", **launch):
        from hf_rlhf.recipes.arguments import ModelArguments, RewardArguments, RewardTrainingArguments
        from hf_rlhf.recipes.reward import train_reward_model

        kinds = [RewardArguments, RewardTrainingArguments, ModelArguments]
        return train_reward_model(
            *_parsed(kinds, [*_recipe_flags(folder, "pairs.jsonl", resume, **(OF_TRL | launch)), *flags])
        )

    return run


def sft_recipe(*flags):
    """`hf-rlhf sft` of 8 updates."""

    def run(folder, resume="auto", **launch):
        from hf_rlhf.recipes.arguments import DataArguments, ModelArguments, SFTTrainingArguments
        from hf_rlhf.recipes.sft import train_sft

        kinds = [DataArguments, SFTTrainingArguments, ModelArguments]
        return train_sft(*_parsed(kinds, [*_recipe_flags(folder, "texts.jsonl", resume, **(OF_TRL | launch)), *flags]))

    return run


def ppo_recipe(*flags):
    """`hf-rlhf ppo` of 8 updates with a reward adapter, trained on the policy's base."""

    def run(folder, resume="auto", **launch):
        from hf_rlhf.recipes.arguments import ModelArguments, PPOArguments
        from hf_rlhf.recipes.ppo import train_ppo

        sizes = {"max_completion_length": 8, "max_prompt_length": 32, "num_mini_batches": 2, "num_ppo_epochs": 2}
        given = {"reward_model_path": Path(folder).parent / "reward", **sizes, **launch}
        kinds = [PPOArguments, PPOConfig, ModelArguments]
        return train_ppo(*_parsed(kinds, [*_recipe_flags(folder, "prompts.jsonl", resume, **given), *flags]))

    return run


def ppo(**flags):
    """PPO of 8 updates on 16 completions an iteration, by AdamW."""

    def run(folder, resume="auto", **launch):
        given = {**ADAMW, "save_steps": 4, "reward": number_reward, **SAVES, **flags, **launch}
        roles = {"value_model": classifier()} if given.get("critic") == "model" else {}
        model = make_model(make_tokenizer(), **given.pop("shape", {})).to(given.pop("dtype", torch.float32))
        given |= {"model": model, "per_device_train_batch_size": _share_of_eight(), "trainer_kwargs": roles}
        trainer = make_trainer(folder, **given)
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_model()
        return trainer

    return run


PROBE = [5, 8, 11, 2, 7]


def other_uses(folder, **launch):
    """Use a trainer in each of the other ways once; return the numbers, which the launch must not change."""
    flags = {
        **ADAMW,
        **SAVES,
        "save_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "reward": number_reward,
        **launch,
    }
    flags |= {"max_steps": 8, "per_device_train_batch_size": _share_of_eight(), "load_best_model_at_end": True}
    given = {"eval_dataset": make_prompts(5)}
    prompts = [row["prompt"] for row in make_prompts(5)]
    trained = make_trainer(folder / "train", trainer_kwargs=given, **flags)
    numbers = {"before": trained.evaluate(metric_key_prefix="x"), "values before": trained.predict_value(prompts)}
    trained.train()
    numbers |= {"values": trained.predict_value(prompts), "after": trained.evaluate(metric_key_prefix="x")}
    trained.save_model()
    with trained._weights(), torch.no_grad():
        numbers["values within"] = trained.predict_value(["the cat", "happy"])
        logits = trained.policy.model.eval()(input_ids=torch.tensor([PROBE])).logits
    numbers["logits"] = logits.flatten().tolist()

    loop = make_trainer(folder / "loop", trainer_kwargs=given, **flags)
    for iteration in range(2):
        rows = list(loop.prompts.rows(iteration))
        completions = loop.generate([row["prompt"] for row in rows])
        texts = [
            [{"content": loop.processing_class.decode(each.ids, skip_special_tokens=True)}] for each in completions
        ]
        rewards = number_reward(None, texts, [row["number"] for row in rows])
        metrics = loop.step([row["prompt"] for row in rows], completions, rewards)
    loop.save_model()
    numbers["loop"] = {name: value for name, value in metrics.items() if name.startswith(("objective", "loss", "val"))}
    return numbers


SHARDED = {
    "ppo": ppo(),
    "ppo, all weights": ppo(lora=None, critic="model", learning_rate=1e-3, shape={"tie_word_embeddings": True}),
    "ppo, bf16 base": ppo(dtype=torch.bfloat16),
    "ppo, adapter critic": ppo(critic="adapter", ref_model_sync_iterations=1),
    "ppo, reward adapter": ppo_recipe(),
    "ppo, reward adapter, in step": ppo_recipe("--gather_for_rollout", "false"),
    "reward": reward_recipe(),
    "reward, all weights": reward_recipe("--use_peft", "false"),
    "sft": sft_recipe(),
    "sft, mixed bf16": sft_recipe("--bf16", "true"),
    "sft, all weights": sft_recipe("--use_peft", "false"),
}


def start_child(work, *, stderr=os.devnull):
    """Do `work` in a forked process, which saves the seconds of imports; returns its number.

    No thread of torch may run before, or the child would wait for it.
    """
    assert torch.get_num_threads() == 1
    gc.freeze()  # a trainer collects garbage, which need not go through all that is imported
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        null = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # threads race for torch's pool, which a fork has lost
        PeftModel.create_or_update_model_card = lambda *_: None  # compiles a template: half of the time
        work()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def wait_for(children, seconds):
    """Wait until these processes have ended, at most some seconds; returns the wait status of each that has."""
    deadline, ended = time.monotonic() + seconds, {}
    while len(ended) < len(children):
        for child in [child for child in children if child not in ended]:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                ended[child] = status
        if time.monotonic() >= deadline:
            break
        time.sleep(0.002)
    return ended


def in_child(work, *, kill_after=None, stderr=os.devnull):
    """Do `work` in a forked process, and kill it by SIGKILL after some seconds; returns its wait status."""
    child = start_child(work, stderr=stderr)
    ended = wait_for([child], float("inf") if kill_after is None else kill_after)
    if not ended:
        os.kill(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1]
    return ended[child]


def in_ranks(work, *, kill_after=None, victims=(0, 1), stderr=os.devnull):
    """Do `work` on two forked ranks under FSDP2, and kill some after some seconds; return the first bad status.

    The rest continues for a moment before it is killed too, as a launcher does it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def as_rank(number):
        given = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ.update(sharding_on_cpu.FSDP2 | {"MASTER_ADDR": "127.0.0.1"} | {k: str(v) for k, v in given.items()})
        sharding_on_cpu.allow()
        work()
        torch.distributed.destroy_process_group()

    children = [start_child(lambda number=number: as_rank(number), stderr=stderr) for number in range(2)]
    ended = wait_for(children, 120 if kill_after is None else kill_after)
    for dying in ([children[number] for number in victims], children):
        for child in [child for child in dying if child not in ended]:
            os.kill(child, signal.SIGKILL)
            ended[child] = os.waitpid(child, 0)[1]
        ended |= wait_for([child for child in children if child not in ended], 0.5)
    return next((status for status in ended.values() if status), 0)


def outcome(folder):
    """Return what must be the same bits: final weights, and every row of the logs without the columns of times."""
    folder = Path(folder)
    weights = {
        str(file.relative_to(folder)): {
            name: tensor.flatten().view(torch.uint8).numpy().tobytes() for name, tensor in load_file(file).items()
        }
        for file in sorted(folder.glob("*.safetensors"))
    }
    samples = folder / "samples.jsonl"
    return weights, metrics_of(folder), samples.read_text() if samples.exists() else None


def kill_and_resume(kind, folder, kills, seed=0):
    """Kill `kills` runs, each at a random moment, and start each again until it ends.

    Of two ranks, one or both are killed. A run that was over by then is made anew. Returns how many ended as the run
    that was not killed.
    """
    train, launch = RUNS[kind], in_ranks if kind in ON_RANKS else in_child
    launch(lambda: train(folder / "warm"))  # what is compiled or cached once
    begin = time.monotonic()
    errors = folder / "whole.txt"
    assert launch(lambda: train(folder / "whole"), stderr=errors) == 0, errors.read_text()
    seconds = time.monotonic() - begin
    expected = outcome(folder / "whole")
    draws = random.Random(seed)
    killed = same = 0
    while killed < kills:
        place = folder / str(killed)
        who = {"victims": draws.choice([(0,), (1,), (0, 1)])} if kind in ON_RANKS else {}
        begin = time.monotonic()
        if launch(lambda place=place: train(place), kill_after=draws.uniform(0, seconds), **who) == 0:
            seconds = time.monotonic() - begin  # no longer as busy a machine
            shutil.rmtree(place)
            continue
        errors = folder / f"{killed}.txt"
        assert launch(lambda place=place: train(place), stderr=errors) == 0, errors.read_text()
        killed += 1
        same += outcome(place) == expected
    return same
