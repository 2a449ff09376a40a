"""Measure how much more memory an ensemble of reward adapters takes than one of them, on one base.

    python benchmarks/ensemble_memory.py --model embedded:smollm2-135m-instruct --members 4

Makes untrained adapters with the LoRA settings of `hf-rlhf reward`, saves them as an ensemble, loads it in the base's
native dtype as PPO does, and counts the bytes of all parameters and buffers, and the peak of a scoring pass.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from hf_rlhf.models.load import load_sequence_classifier, load_tokenizer
from hf_rlhf.models.precision import NATIVE
from hf_rlhf.recipes.arguments import ModelArguments, peft_config
from hf_rlhf.rewards.ensemble import EnsembleFile, load_ensemble


def loaded_bytes(members) -> int:
    """Return the bytes of all tensors that the members hold, each counted once."""
    models = {id(member.model): member.model for member in members}.values()
    tensors = {t.data_ptr(): t for model in models for t in (*model.parameters(), *model.buffers())}
    heads = [member.head for member in members if hasattr(member, "head")]
    return sum(t.numel() * t.element_size() for t in (*tensors.values(), *heads))


def main() -> None:
    """Print one line of JSON."""
    from peft import get_peft_model

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--lora_r", type=int, default=16)
    parser.add_argument("--dtype", default=NATIVE)
    args = parser.parse_args()
    flags = ModelArguments(model_name_or_path=args.model, lora_r=args.lora_r)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        load_tokenizer(args.model).save_pretrained(folder)
        names = tuple(f"member_{number + 1}" for number in range(args.members))
        for number, name in enumerate(names):
            torch.manual_seed(number)
            classifier = load_sequence_classifier(args.model, dtype=args.dtype)
            config = peft_config(flags, classifier)
            config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
            get_peft_model(classifier, config).save_pretrained(folder / name)
            del classifier
        sizes, found = {}, {}
        for count in (1, args.members):
            EnsembleFile(count, names[:count], centers=(0.0,) * count).write(folder)
            reward = load_ensemble(folder, dtype=args.dtype)
            sizes[count] = loaded_bytes(reward.members)
            found[count] = len(reward(["The sky is"], [" blue."]))
            dtype = str(reward.members[0].model.dtype).removeprefix("torch.")
            del reward
    more = sizes[args.members] / sizes[1] - 1
    megabytes = {f"megabytes of {count}": round(size / 1e6, 1) for count, size in sizes.items()}
    print(json.dumps({"model": args.model, "dtype": dtype, **megabytes, "more": f"{more:.1%}"}))


if __name__ == "__main__":
    main()
