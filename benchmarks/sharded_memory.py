"""Peak memory of each rank by phase: DDP, FSDP2 with the weights gathered for rollouts, and FSDP2 block by block.

    python benchmarks/sharded_memory.py                 # two CPU ranks, all of a Llama of 160M random fp32 weights
    python benchmarks/sharded_memory.py --hidden 512    # a smaller one

Each way is a start of its own. The kernel counts what a process has resident (VmHWM), from the beginning of each phase.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

import sharding_on_cpu  # noqa: E402

WAYS = {
    "DDP": ({"ACCELERATE_USE_CPU": "true"}, {}),
    "FSDP2, gathered for rollouts": (sharding_on_cpu.FSDP2, {}),
    "FSDP2, block by block": (sharding_on_cpu.FSDP2, {"gather_for_rollout": False}),
}


def resident(key: str) -> float:
    """Return a line of this process's status, in GB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1e6


def run_rank(hidden: int, layers: int, flags: dict) -> None:
    """Train two iterations, and print what each phase of the second held at most."""
    import torch
    from tiny import make_model, make_tokenizer, make_trainer

    launch = sharding_on_cpu.allow()
    tokenizer = make_tokenizer()
    wide = {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
    }
    model = make_model(tokenizer, **wide, num_key_value_heads=8, initializer_range=0.02, tie_word_embeddings=True)
    weights = sum(parameter.numel() for parameter in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            folder, model=model, lora=None, learning_rate=1e-5, optim="adamw_torch", **launch | flags
        )
        del model
        peaks: dict[str, float] = {}

        def measured(name, work):
            def run(*args, **kwargs):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is now what is there
                try:
                    return work(*args, **kwargs)
                finally:
                    peaks[name] = resident("VmHWM")

            return run

        trainer.make_experience = measured("rollout", trainer.make_experience)
        trainer.training_step = measured("update", trainer.training_step)
        trainer.train()
        peaks["at rest"] = resident("VmRSS")
    print(json.dumps({"rank": torch.distributed.get_rank(), "weights": weights, **peaks}), flush=True)
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads may hold the interpreter's end


def main() -> None:
    """Start each way, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--flags", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.flags is not None:
        run_rank(given.hidden, given.layers, given.flags)
    for name, (settings, flags) in WAYS.items():
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(given.ranks),
            __file__,
        ]
        command += ["--hidden", str(given.hidden), "--layers", str(given.layers), "--flags", json.dumps(flags)]
        environment = os.environ | settings | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        ranks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"rank"')]
        if done.returncode or not ranks:
            sys.exit(done.stdout + done.stderr)
        most = {key: max(rank[key] for rank in ranks) for key in ("rollout", "update", "at rest")}
        phases = ", ".join(f"{phase} {size:.2f}" for phase, size in most.items())
        print(f"{name}: {ranks[0]['weights'] / 1e6:.0f}M weights; GB of the rank that held most: {phases}", flush=True)


if __name__ == "__main__":
    main()
