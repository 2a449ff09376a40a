"""Scalar heads: modules of their own, kept in fp32, saved as safetensors."""

import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from hf_rlhf.errors import InputError

WEIGHTS_NAME = "value_head.safetensors"
CONFIG_NAME = "value_head_config.json"


class ValueHead(nn.Module):
    """One linear map from a hidden state to a value: `(..., H) -> (...)`, always computed in fp32.

    Starts at zero, so that the first advantages are the rewards themselves and not a random function of the state.
    Its parameters are named `summary.*`, as in TRL's old value head.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.summary = nn.Linear(hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(self.summary.weight)
        nn.init.zeros_(self.summary.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return self.summary(hidden.float()).squeeze(-1)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write `value_head.safetensors` and `value_head_config.json` into `folder`."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {f"v_head.{name}": tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
        config = {"type": "linear", "hidden_size": self.summary.in_features}
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> "ValueHead":
        """Read a head that `save_pretrained` wrote; a missing file is an error, never a fresh head."""
        from safetensors.torch import load_file

        file = Path(folder) / WEIGHTS_NAME
        if not file.is_file():
            raise InputError(f"{folder}: no {WEIGHTS_NAME}; a policy trained with PPO has one beside its adapter")
        state = {name.removeprefix("v_head."): tensor for name, tensor in load_file(file).items()}
        head = cls(state["summary.weight"].shape[1])
        head.load_state_dict(state)
        return head
