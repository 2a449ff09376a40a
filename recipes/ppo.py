# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-rlhf[embedded,report]"]
# ///
r"""Train a policy with PPO; the same code as `hf-rlhf ppo`.

    python recipes/ppo.py --config recipes/configs/hh_rlhf/ppo.yaml
    accelerate launch --config_file recipes/accelerate_configs/ddp.yaml recipes/ppo.py \
        --config recipes/configs/hh_rlhf/ppo.yaml
    uv run recipes/ppo.py --config recipes/configs/hh_rlhf/ppo.yaml

Two processes on CPU: `ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 recipes/ppo.py ...`
"""

import sys

from hf_rlhf.cli import main

if __name__ == "__main__":
    sys.exit(main(["ppo", *sys.argv[1:]]))
