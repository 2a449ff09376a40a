"""One rank of a run in which something happens to the other: KIND FOLDER WHAT [FLAGS (JSON)]."""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import checkpoint.runs as runs
import sharding_on_cpu
from safetensors.torch import save
from training.test_signals import at_update

from hf_rlhf.cli.commands import COMMANDS, main
from hf_rlhf.distributed import rank, world_size
from hf_rlhf.training.durable import DurableTrainer


def nan_at(updates):
    """Make the loss of this rank NaN in some updates."""
    step = DurableTrainer.training_step

    def poisoned(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        if self.state.global_step + 1 in updates:
            next(iter(self.policy.critic_parameters())).grad.fill_(math.nan)
            return loss * math.nan
        return loss

    DurableTrainer.training_step = poisoned


def at(update, act):
    start = DurableTrainer.train

    def train(self, *args, **kwargs):
        self.add_callback(at_update(update, act))
        return start(self, *args, **kwargs)

    DurableTrainer.train = train


def fail(error):
    def broken(prompts, completions, **columns):
        raise error

    runs.moody_reward = broken


def nan_reward():
    def broken(prompts, completions, **columns):
        return [math.nan] * len(prompts)

    runs.moody_reward = broken


def change_a_weight():
    """Change one weight in the middle of update 3, by the least there is."""
    start = DurableTrainer.train

    def train(self, *args, **kwargs):
        weight = next(iter(self.policy.critic_parameters()))
        self.add_callback(at_update(3, lambda: weight.data.view(-1)[0].add_(1e-6)))
        return start(self, *args, **kwargs)

    DurableTrainer.train = train


def die(*_, **__):
    print(f"dying at {time.time()}", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_rollout():
    runs.moody_reward = die


def die_in_save():
    DurableTrainer._write_parts = die


def full(*_):
    print(f"dying at {time.time()}", flush=True)
    raise OSError(28, "No space left on device")


def fail_in_save():
    DurableTrainer._save_optimizer_and_scheduler = full


def fail_to_write():
    DurableTrainer._write_parts = full


def fail_in_rollout():
    def broken(prompts, completions, **columns):
        print(f"dying at {time.time()}", flush=True)
        raise ValueError("no such thing")

    runs.moody_reward = broken


EVENTS = {
    "die in a rollout": die_in_rollout,
    "die in a save": die_in_save,
    "fail in a save": fail_in_save,
    "fail to write": fail_to_write,
    "fail in a rollout": fail_in_rollout,
    "plain": lambda: None,
    "term": lambda: at(3, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    "kill": lambda: at(3, lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "diverge": change_a_weight,
    "nan": lambda: nan_at({3}),
    "nans": lambda: nan_at({3, 4, 5}),
    "raise": nan_reward,
    "other": lambda: fail(ValueError("no such thing")),
}


def work(argv):
    kind, folder, what, *more = argv
    launch = sharding_on_cpu.allow()
    if os.environ["RANK"] == "1":
        EVENTS[what]()
    if kind not in runs.RUNS:
        runs.SHARDED[kind](Path(folder), "never", **launch)
        return
    trainer = runs.RUNS[kind](Path(folder), ref_model_sync_iterations=None, **json.loads(*more or ["{}"]))
    assert world_size() == 2
    assert trainer.accelerator.num_processes == 2
    import hashlib

    if trainer.is_fsdp_enabled:
        return
    weights = {name: p.detach().contiguous() for name, p in trainer.policy.named_parameters() if p.requires_grad}
    print(f"rank {rank()} weights: {hashlib.sha256(save(weights)).hexdigest()}", flush=True)


if __name__ == "__main__":
    COMMANDS["work"] = work
    sys.exit(main(["work", *sys.argv[1:]]))
