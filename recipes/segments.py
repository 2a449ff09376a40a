# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-rlhf[embedded,gym]"]
# ///
"""Ask which of two segments of a game is better; the same code as `hf-rlhf segments`.

python recipes/segments.py --config recipes/configs/segments/segments.yaml
uv run recipes/segments.py --config recipes/configs/segments/segments.yaml
"""

import sys

from hf_rlhf.cli import main

if __name__ == "__main__":
    sys.exit(main(["segments", *sys.argv[1:]]))
