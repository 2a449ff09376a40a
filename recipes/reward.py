# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-rlhf[embedded,report]"]
# ///
r"""Train a reward model; the same code as `hf-rlhf reward`.

    python recipes/reward.py --config recipes/configs/hh_rlhf/reward.yaml
    accelerate launch --config_file recipes/accelerate_configs/ddp.yaml recipes/reward.py \
        --config recipes/configs/hh_rlhf/reward.yaml
    uv run recipes/reward.py --config recipes/configs/hh_rlhf/reward.yaml

Two processes on CPU: `ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 recipes/reward.py ...`
"""

import sys

from hf_rlhf.cli import main

if __name__ == "__main__":
    sys.exit(main(["reward", *sys.argv[1:]]))
