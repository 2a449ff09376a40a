"""Scalar heads: modules of their own, kept in fp32, saved as safetensors."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_rlhf.errors import InputError

WEIGHTS_NAME = "value_head.safetensors"
CONFIG_NAME = "value_head_config.json"


class ValueHead(nn.Module):
    """Map of a hidden state to a value, `(..., H) -> (...)`: linear, or with one hidden layer; always computed in fp32.

    Starts at zero, so that the first advantages are the rewards themselves and not a random function of the state.
    The parameters of the last layer are named `summary.*`, as in TRL's old value head.

    Args:
        hidden_size: `H`.
        mlp_size: width of a hidden layer with a SiLU behind it; None for a linear head.
        init_std: standard deviation of the last layer's random start; 0 makes every first value 0.
    """

    def __init__(self, hidden_size: int, mlp_size: int | None = None, init_std: float = 0.0):
        super().__init__()
        self.hidden = None if mlp_size is None else nn.Linear(hidden_size, mlp_size, dtype=torch.float32)
        self.summary = nn.Linear(mlp_size or hidden_size, 1, dtype=torch.float32)
        nn.init.normal_(self.summary.weight, std=init_std) if init_std else nn.init.zeros_(self.summary.weight)
        nn.init.zeros_(self.summary.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the value of each state in fp32, `(..., H) -> (...)`."""
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            if self.hidden is not None:
                hidden = nn.functional.silu(self.hidden(hidden))
            return self.summary(hidden).squeeze(-1)

    @property
    def hidden_size(self) -> int:
        """`H`, the size of the states it reads."""
        return (self.summary if self.hidden is None else self.hidden).in_features

    @property
    def mlp_size(self) -> int | None:
        """Width of the hidden layer; None for a linear head."""
        return None if self.hidden is None else self.hidden.out_features

    def save_pretrained(
        self, folder: str | os.PathLike, state_dict: dict[str, Tensor] | None = None, **facts: Any
    ) -> None:
        """Write `value_head.safetensors` and `value_head_config.json`; `facts` are added to the latter.

        `state_dict` holds the weights of a head whose own are sharded.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        own = self.state_dict() if state_dict is None else state_dict
        state = {f"v_head.{name}": tensor.detach().cpu().contiguous() for name, tensor in own.items()}
        save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
        first = self.summary if self.hidden is None else self.hidden
        config = {
            "type": "linear" if self.hidden is None else "mlp",
            "hidden_size": first.in_features,
            "mlp_size": self.mlp_size,
            **facts,
        }
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> "ValueHead":
        """Read a head that `save_pretrained` wrote; a missing file is an error, never a fresh head."""
        from safetensors.torch import load_file

        file = Path(folder) / WEIGHTS_NAME
        if not file.is_file():
            raise InputError(
                f"{folder}: there is no {WEIGHTS_NAME}. A policy trained with PPO has one beside its adapter"
            )
        state = {name.removeprefix("v_head."): tensor for name, tensor in load_file(file).items()}
        if "hidden.weight" in state:
            mlp_size, hidden_size = state["hidden.weight"].shape
            head = cls(hidden_size, mlp_size)
        else:
            head = cls(state["summary.weight"].shape[1])
        head.load_state_dict(state)
        return head

    @classmethod
    def from_score(cls, weight: Tensor, bias: Tensor | None = None) -> "ValueHead":
        """Make the head whose value is a reward model's reward: `weight` `(1, H)`, `bias` `(1,)`."""
        head = cls(weight.shape[1])
        with torch.no_grad():
            head.summary.weight.copy_(weight)
            if bias is not None:
                head.summary.bias.copy_(bias)
        return head


def saved_facts(folder: str | os.PathLike) -> dict[str, Any]:
    """Return the facts saved with the head in `folder`: `critic`, its kind, and `dtype`, that of the model it reads."""
    file = Path(folder) / CONFIG_NAME
    known = {"critic": "value_head", "dtype": "bfloat16"}  # old TRL's heads come without
    return known | (json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {})
