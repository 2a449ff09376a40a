# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-rlhf[embedded,report]"]
# ///
r"""Supervised fine-tuning; the same code as `hf-rlhf sft`.

    python recipes/sft.py --dataset_name trl-lib/Capybara --output_dir runs/sft
    accelerate launch --config_file recipes/accelerate_configs/ddp.yaml recipes/sft.py \
        --dataset_name trl-lib/Capybara --output_dir runs/sft
    uv run recipes/sft.py --dataset_name trl-lib/Capybara --output_dir runs/sft

Two processes on CPU: `ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 recipes/sft.py ...`
"""

import sys

from hf_rlhf.cli import main

if __name__ == "__main__":
    sys.exit(main(["sft", *sys.argv[1:]]))
