import gc

import torch
from datasets import Dataset
from tiny import make_trainer
from transformers import TrainerCallback


class LiveNumbers(TrainerCallback):
    """How many numbers all tensors hold together, at the end of each iteration."""

    def __init__(self):
        self.counts = []

    def on_log(self, args, state, control, **kwargs):
        gc.collect()
        # Not isinstance, which asks lazy objects for a class and so wakes them up.
        tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
        self.counts.append(sum(tensor.numel() for tensor in tensors))


def test_an_iteration_leaves_no_tensor_behind(tmp_path):
    live = LiveNumbers()
    make_trainer(
        tmp_path,
        data=Dataset.from_dict({"prompt": ["the cat sat on"] * 16}),
        stop_token_ids=list(range(29)),  # every completion has one token: all iterations are of one size
        max_steps=4 * 10,
        trainer_kwargs={"callbacks": [live]},
    ).train()
    assert live.counts[1] > 0
    assert set(live.counts[1:10]) == {live.counts[1]}
