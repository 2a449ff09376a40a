"""One rank of runs that are saved, and resumed in a copy, under a launcher that shards: FOLDER RANKS KINDS (JSON).

For each kind, FOLDER/kind/whole is a run of eight updates or more with a checkpoint in its middle, and
FOLDER/kind/resumed resumed from a copy of that checkpoint.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import sharding_on_cpu
import torch
from accelerate.state import AcceleratorState
from checkpoint.runs import SHARDED, other_uses

from hf_rlhf.distributed import by_first_rank, rank, world_size


def keep_the_middle(whole: Path, resumed: Path) -> None:
    """Copy a run as it was after its first checkpoint."""
    shutil.copytree(whole, resumed)
    checkpoints = sorted(resumed.glob("checkpoint-*"), key=lambda folder: int(folder.name.partition("-")[2]))
    for later in checkpoints[1:]:
        shutil.rmtree(later)
    for file in resumed.glob("*.safetensors"):
        file.unlink()


def main(folder, ranks, kinds):
    launch = sharding_on_cpu.allow()
    for kind in json.loads(kinds):
        whole, resumed = Path(folder) / kind / "whole", Path(folder) / kind / "resumed"
        SHARDED[kind](whole, "never", **launch)
        assert world_size() == int(ranks)
        assert AcceleratorState().distributed_type.value in ("FSDP", "DEEPSPEED")
        by_first_rank(lambda whole=whole, resumed=resumed: keep_the_middle(whole, resumed))
        SHARDED[kind](resumed, "last", **launch)
    for gather in (True, False):
        place = Path(folder) / f"other uses {gather}"
        numbers = other_uses(place, gather_for_rollout=gather, **launch)
        if rank() == 0:
            (place / "numbers.json").write_text(json.dumps(numbers))


if __name__ == "__main__":
    main(*sys.argv[1:])
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads outlive the group, and can abort an interpreter that ends in their midst
