"""A run's own server dies when rank 0 has no completions left to wait for, and rank 1 has: FOLDER, with a `python`."""

import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch.distributed
from rollout.vllm.test_engine import PROMPTS, SAMPLING, SEEDS
from tiny import make_lora, make_model, make_tokenizer, perturb

from hf_rlhf.distributed import failing_together, rank
from hf_rlhf.models.policy import PolicyWithValue, wrap_policy
from hf_rlhf.rollout.vllm.client import ServerLost
from hf_rlhf.rollout.vllm.engine import VLLMEngine
from hf_rlhf.rollout.vllm.server import VLLMServer


def kill_when_asked(engine, pids):
    """Kill the server once it has a request for completions; `VLLMDouble` lists the requests it had."""
    path = "/v1/completions"
    while all(asked[0] != path for asked in requests_to(engine)):
        time.sleep(0.05)
    os.kill(int(pids.read_text().split()[-1]), signal.SIGKILL)


def requests_to(engine):
    try:
        return engine.pool.servers[0].client.get("/requests").json or []
    except ServerLost:
        return []


def main(folder):
    folder = Path(folder)
    tokenizer = make_tokenizer()
    policy = perturb(PolicyWithValue(wrap_policy(make_model(tokenizer), make_lora())), only="lora").eval()
    server = VLLMServer(str(folder / "python"), [], folder / "server.log")
    engine = VLLMEngine(policy.model, tokenizer, server, folder / "vllm", timeout=60)
    engine.generate([], SAMPLING, [])  # starts the server, and tells its address
    prompts, seeds = (PROMPTS, SEEDS) if rank() == 1 else ([], [])
    if rank() == 1:
        threading.Thread(target=kill_when_asked, args=(engine, folder / "pids"), daemon=True).start()
    with failing_together():
        completions = engine.generate(prompts, SAMPLING, seeds)
    (folder / f"sampled{rank()}.json").write_text(json.dumps([completion.ids for completion in completions]))
    torch.distributed.barrier()
    engine.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    torch.distributed.init_process_group("gloo")
    main(*sys.argv[1:])
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads outlive the group, and can abort an interpreter that ends in their midst
