# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-rlhf[embedded]"]
# ///
"""Learn from feedback in rounds; the same code as `hf-rlhf rounds`.

python recipes/rounds.py --config recipes/configs/rounds/rounds.yaml
uv run recipes/rounds.py --config recipes/configs/rounds/rounds.yaml
"""

import sys

from hf_rlhf.cli import main

if __name__ == "__main__":
    sys.exit(main(["rounds", *sys.argv[1:]]))
