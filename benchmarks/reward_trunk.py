"""Time the making of experience with a reward adapter that begins above the trunk, and with one that passes all blocks.

    OMP_NUM_THREADS=1 python benchmarks/reward_trunk.py

SmolLM2-135M-Instruct, LoRA r16 on the last quarter of the blocks of policy and reward, 32 completions of up to 32 tokens for
messages of the quickstart, in ChatML. One trainer samples, scores and passes a rollout in each round; rounds take turns.
Seconds of the processor, for one thread; medians, after one round that warms up.
"""

import argparse
import tempfile
import time
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from ppo_against_trl import lora_arguments
from trunk import COMPLETIONS, make_config

from hf_rlhf import PPOTrainer
from hf_rlhf.models.load import EMBEDDED_MODEL, load_causal_lm, load_sequence_classifier, load_tokenizer
from hf_rlhf.quickstart.prompts import quickstart_prompts


def make_reward_adapter(folder: str, dtype: str) -> None:
    """Write a reward adapter with a random score head."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    tokenizer = load_tokenizer(EMBEDDED_MODEL)
    classifier = load_sequence_classifier(EMBEDDED_MODEL, dtype=dtype)
    classifier.config.pad_token_id = tokenizer.pad_token_id
    lora: Any = LoraConfig(task_type="SEQ_CLS", **lora_arguments(EMBEDDED_MODEL, "0.25"))
    get_peft_model(classifier, lora).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Print the medians of both."""
    from peft import LoraConfig

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {"all blocks": [], "above the trunk": []}
    with tempfile.TemporaryDirectory() as folder:
        make_reward_adapter(f"{folder}/reward", args.dtype)
        rows = [
            {"prompt": [{"role": "user", "content": text}]} for text in quickstart_prompts()["train"][: 2 * COMPLETIONS]
        ]
        trainer = PPOTrainer(
            load_causal_lm(EMBEDDED_MODEL, dtype=args.dtype),
            f"{folder}/reward",
            make_config(f"{folder}/run", temperature=0.7),
            Dataset.from_list(rows),
            processing_class=load_tokenizer(EMBEDDED_MODEL),
            peft_config=LoraConfig(task_type="CAUSAL_LM", **lora_arguments(EMBEDDED_MODEL, "0.25")),
        )
        reward: Any = trainer.kept_states.rewards[0]
        states = {"all blocks": lambda input_ids, attention_mask: None, "above the trunk": reward.trunk_states}
        for iteration in range(args.rounds + 1):
            for name, trunk_states in states.items():
                reward.trunk_states = trunk_states
                begun = time.process_time()
                trainer.make_experience(iteration)
                seconds[name].append(time.process_time() - begun)
                trainer.kept_states.clear()
    for name, each in seconds.items():
        print(f"{name}: {median(each[1:]):.2f} s")


if __name__ == "__main__":
    main()
