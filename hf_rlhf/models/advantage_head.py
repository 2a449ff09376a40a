"""A function that says how much better a token is than the policy's mean at a state, fitted to returns."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import base_of
from hf_rlhf.models.backbone import counted_ids, logits_head, state_width
from hf_rlhf.ops.logprobs import centered_embeddings
from hf_rlhf.types import Model, Sequences

WEIGHTS_NAME = "advantage_head.safetensors"


class AdvantageHead(nn.Module):
    """The advantages `A(s, a) = u(h_s) . (e_a - sum_v pi(v | s) e_v)` of all tokens, whose mean under `pi` is 0.

    `h_s` is the policy's hidden state, `e_a` the row of a token in the policy's head, and `u` a linear map in fp32 that
    starts at zero. Its loss changes no weight of the policy. The embeddings are scaled so that a step of Adam changes
    an advantage about as much as it changes a value of a `ValueHead`.

    Args:
        hidden_size: `H`.
        embedding_size: `E`.
        scale: of the embeddings.
    """

    scale: Tensor

    def __init__(self, hidden_size: int, embedding_size: int, scale: float = 1.0):
        super().__init__()
        self.direction = nn.Linear(hidden_size, embedding_size, bias=False, dtype=torch.float32)
        nn.init.zeros_(self.direction.weight)
        self.register_buffer("scale", torch.tensor(scale))

    @classmethod
    def of(cls, policy: Model) -> "AdvantageHead":
        """Make the head of a policy. Raises `InputError` for a model whose head is quantized."""
        rows = _rows(policy)
        if not rows.is_floating_point():
            raise InputError(
                "advantage_estimator=dae is invalid: the model's head is quantized, and its rows describe the tokens."
                " Take another estimator, or keep the head in full precision."
            )
        norm = rows.detach().float().square().mean().sqrt().item() * rows.shape[1]  # that of a row, times sqrt(E)
        return cls(state_width(base_of(policy)), rows.shape[1], 1.0 / max(norm, 1e-12))

    def forward(self, policy: Model, sequences: Sequences, hidden: Tensor, temperature: float) -> Tensor:
        """Return the advantages `(N,)` in fp32 of the counted tokens; `hidden` `(N, H)` are the policy's states."""
        hidden = hidden.detach()
        centered = centered_embeddings(
            hidden,
            counted_ids(sequences),
            logits_head(base_of(policy)),
            _rows(policy).detach(),
            temperature=temperature,
            support=sequences.counted_support(),
            vocab_size=base_of(policy).config.get_text_config().vocab_size,
        )
        with torch.autocast(hidden.device.type, enabled=False):
            return (self.direction(hidden.float()) * centered).sum(dim=1) * self.scale

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write `advantage_head.safetensors`."""
        from safetensors.torch import save_file

        Path(folder).mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, Path(folder) / WEIGHTS_NAME, metadata={"format": "pt"})

    def load_weights(self, folder: str | os.PathLike) -> None:
        """Replace the weights by those that `save_pretrained` wrote; a missing file is an error."""
        from safetensors.torch import load_file

        file = Path(folder) / WEIGHTS_NAME
        if not file.is_file():
            raise InputError(
                f"{folder}: there is no {WEIGHTS_NAME}. A run with advantage_estimator=dae has one in each checkpoint."
                " Resume with the estimator that the run began with."
            )
        self.load_state_dict(load_file(file))


def _rows(policy: Model) -> Tensor:
    """Return the rows `(V, E)` of a model's head."""
    return base_of(policy).get_output_embeddings().weight
