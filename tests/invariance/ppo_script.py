"""Train runs of `runs.py` one after the other, on as many ranks as torchrun starts.

    torchrun --nproc_per_node 2 ppo_script.py FOLDER WORLD_SIZE JSON

JSON maps a folder's name to the `name` of a run and its batch sizes. Rank r is told to write to FOLDER/that name/r:
what others than rank 0 write shows there.
"""

import json
import os
import sys
from pathlib import Path

import sharding_on_cpu
import torch
from invariance.runs import places, train


def main(folder, world_size, cuts):
    launch = sharding_on_cpu.allow()
    places()
    for place, cut in json.loads(cuts).items():
        trainer = train(Path(folder) / place / os.environ["RANK"], **launch | cut)
        assert trainer.accelerator.num_processes == int(world_size), trainer.accelerator.num_processes
        if os.environ["RANK"] == "0":
            write_facts(trainer, Path(folder) / place / "facts.json")


def write_facts(trainer, file):
    """Write the facts that prove that a run was sharded at all."""
    parameters = sorted({type(parameter).__name__ for parameter in trainer.policy.parameters()})
    facts = {"parameters": parameters, "launch": trainer.accelerator.distributed_type.value}
    file.write_text(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads outlive the group, and can abort an interpreter that ends in their midst
