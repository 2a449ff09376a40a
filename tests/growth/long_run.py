"""A PPO run of many equal iterations that prints, for the end of each, what the process holds."""

import gc
import json
import sys

import torch
from datasets import Dataset
from tiny import make_model, make_tokenizer, make_trainer
from transformers import TrainerCallback


class Holdings(TrainerCallback):
    """Resident memory, living tensors and objects that the garbage collector knows, after each iteration."""

    def __init__(self):
        self.rows = []

    def on_log(self, args, state, control, **kwargs):
        gc.collect()
        things = gc.get_objects()
        self.rows.append(
            {
                "resident_bytes": resident_bytes(),
                "tensors": sum(issubclass(type(thing), torch.Tensor) for thing in things),
                "objects": len(things),
            }
        )


def resident_bytes():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def main(folder, iterations):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"word{number}" for number in range(8000)])  # so that logits weigh something
    tokenizer.eos_token = None
    holdings = Holdings()
    make_trainer(
        folder,
        model=make_model(tokenizer, eos_token_id=None),
        tokenizer=tokenizer,
        data=Dataset.from_dict({"prompt": ["the cat sat on"] * 16}),
        max_completion_length=32,
        max_steps=4 * iterations,
        trainer_kwargs={"callbacks": [holdings]},
    ).train()
    print(json.dumps(holdings.rows[:iterations]))  # the row after them is of the run's end


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
