# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-rlhf[embedded]"]
# ///
"""Make demonstrations and preferences with a model and principles; the same code as `hf-rlhf ai-feedback`.

python recipes/ai_feedback.py --dataset_name prompts.jsonl --output_dir runs/ai_feedback
uv run recipes/ai_feedback.py --dataset_name prompts.jsonl --output_dir runs/ai_feedback
"""

import sys

from hf_rlhf.cli import main

if __name__ == "__main__":
    sys.exit(main(["ai-feedback", *sys.argv[1:]]))
