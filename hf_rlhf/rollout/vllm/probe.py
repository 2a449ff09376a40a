"""A check that a vLLM server has the model that the policy is trained on."""

from collections.abc import Sequence
from typing import Any

import torch

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import base_of, compute_in_base_dtype, keep_modes
from hf_rlhf.models.backbone import counted_ids, counted_states, logits_head
from hf_rlhf.ops.logprobs import token_logprobs
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.rollout.vllm.client import VLLMClient
from hf_rlhf.rollout.vllm.completion import completion_request
from hf_rlhf.types import Completion, Model, Sequences

PROBE = Sampling(max_completion_length=16, temperature=2.0)
"""Settings of the completion by which a server's model is told from others."""

_ROUNDING = 0.1  # nats a token, at most, between bf16 and fp32
_PROBE_GAP = 0.5  # nats a token; between two models it is well above 1


def probe_request(model: Model, tokenizer, prompt: Sequence[int]) -> dict[str, Any]:
    """Return the request for the completion that `require_same_model` takes."""
    return {**completion_request(model, tokenizer, PROBE), "stop_token_ids": [], "prompt": list(prompt), "seed": 0}


def require_same_model(model: Model, prompt: Sequence[int], completion: Completion) -> None:
    """Raise `InputError` when the log-probabilities of a server's completion are not those of the policy, nearly."""
    sampled = torch.tensor(completion.logprobs)
    gap, gap_at_1 = (
        (sampled - _logprobs(model, prompt, completion.ids, temperature)).abs().mean().item()
        for temperature in (PROBE.temperature, 1.0)
    )
    if gap > _ROUNDING and gap_at_1 < gap / 4:
        raise InputError(
            "it gives log-probabilities before temperature and top-k. Start it with --logprobs-mode processed_logprobs"
        )
    if not gap < _PROBE_GAP:
        raise InputError(
            f"it serves another model than the policy's base: a token's log-probability is {gap:.1f} nats off"
        )


def base_name(client: VLLMClient) -> str | None:
    """Return the name or path of the base that the server loaded; None when it does not say. Raises `ServerLost`."""
    listed = client.get("/v1/models").json
    cards = listed.get("data") if isinstance(listed, dict) else None
    bases = [card.get("root") for card in cards or () if isinstance(card, dict) and not card.get("parent")]
    return bases[0] if bases else None


@torch.no_grad()
def _logprobs(model: Model, prompt: Sequence[int], ids: list[int], temperature: float) -> torch.Tensor:
    """Return the log-probabilities `(T,)` of one completion by the policy itself."""
    causal_lm = base_of(model)
    sequences = Sequences.from_ids([prompt], [ids]).to(next(causal_lm.parameters()).device)
    with keep_modes(model), compute_in_base_dtype(model):
        model.eval()
        states = counted_states(causal_lm, sequences)
        scored = token_logprobs(states, counted_ids(sequences), logits_head(causal_lm), temperature=temperature)
    return scored.logprobs.cpu()
