"""An engine that fills the place of a finished completion with the next prompt: transformers' continuous batching."""

import math
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version
from typing import Any

import torch

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import base_of, keep_modes
from hf_rlhf.models.fast.attention import FUSED, PACKED, attention
from hf_rlhf.rollout.sampling import Sampling, row_seed
from hf_rlhf.rollout.stops import stop_token_ids
from hf_rlhf.types import Completion, Model

_PAGE = 32  # tokens of a page of the cache, where there is no GPU whose free memory says how much there may be


class ContinuousBatchingEngine:
    """Sampling by `model.generate_batch`: a cache in pages, and as many completions at once as it holds.

    The draws are transformers' own, by one seed for the whole call, so a completion depends on the other prompts too.

    Args:
        model: the policy, with or without a PEFT wrapper.
        tokenizer: its tokenizer.
        settings: fields of `transformers.generation.ContinuousBatchingConfig`.
    """

    def __init__(self, model: Model, tokenizer, settings: dict[str, Any] | None = None):
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings or {}

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """Like `Engine.generate`, but raise `InputError` for what transformers' continuous batching cannot do."""
        from transformers import GenerationConfig
        from transformers.generation import ContinuousBatchingConfig

        if "seed" not in _settings_known():
            raise InputError(
                f"use_transformers_continuous_batching is invalid with transformers {version('transformers')}, which"
                " cannot be given a seed for it: pip install -U transformers, or omit it"
            )
        require_batchable(sampling)
        if not prompts:
            return []
        causal_lm = base_of(self.model)
        stop_ids = stop_token_ids(causal_lm, self.tokenizer, sampling)
        config = GenerationConfig(
            max_new_tokens=sampling.max_completion_length,
            do_sample=not sampling.greedy,
            temperature=sampling.temperature or None,
            top_k=0,
            eos_token_id=stop_ids or -1,
            pad_token_id=self.tokenizer.pad_token_id or 0,
        )
        seed = row_seed("continuous batching", *seeds) % 2**32
        try:
            batching = ContinuousBatchingConfig(
                return_logprobs=True, seed=seed, **{**self._room(prompts, sampling), **self.settings}
            )
        except TypeError as error:
            raise InputError(f"transformers_continuous_batching_config: {error}") from error
        before = causal_lm.config._attn_implementation
        devices = [] if causal_lm.device.type == "cpu" else [causal_lm.device]
        with (
            keep_modes(self.model),
            torch.random.fork_rng(devices),
            attention(causal_lm, FUSED if before == PACKED else before),
        ):
            self.model.eval()
            outputs = causal_lm.generate_batch(
                [list(prompt) for prompt in prompts],
                generation_config=config,
                continuous_batching_config=batching,
            )
        results = list(outputs.values())
        failed = [result.error for result in results if result.error is not None]
        if failed or len(results) != len(prompts):
            raise RuntimeError(
                f"continuous batching completed {len(results) - len(failed)} of {len(prompts)} prompts"
                f" ({failed[0] if failed else 'see the log above'}). Lower max_batch_tokens or num_blocks in"
                " transformers_continuous_batching_config, or omit use_transformers_continuous_batching"
            )
        return [_completion(result, set(stop_ids), sampling) for result in results]

    def _room(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> dict[str, Any]:
        """Return the size of the cache: half of a GPU's free memory, as in TRL; elsewhere room for all prompts."""
        if base_of(self.model).device.type != "cpu":
            return {"max_memory_percent": 0.5}
        pages = sum(-(-(len(prompt) + sampling.max_completion_length) // _PAGE) for prompt in prompts)
        tokens = max(len(prompts), *map(len, prompts))
        page = "page_size" if "page_size" in _settings_known() else "block_size"  # as older transformers call it
        return {page: _PAGE, "num_blocks": pages + 1, "max_batch_tokens": max(tokens, 256)}


def _settings_known() -> set[str]:
    from transformers.generation import ContinuousBatchingConfig

    return {field.name for field in fields(ContinuousBatchingConfig)}


def require_batchable(sampling: Sampling) -> None:
    """Raise `InputError` for a sampling that transformers' continuous batching cannot do, or not tell all about."""
    if sampling.truncated:
        raise InputError(
            "continuous batching does not say which tokens top_k, top_p or min_p left to choose from, and without them"
            " the log-probabilities would be of another distribution. Omit these, or omit"
            " use_transformers_continuous_batching"
        )
    if sampling.first_greedy_tokens:
        raise InputError(
            f"first_greedy_tokens={sampling.first_greedy_tokens} is invalid: continuous batching draws every token of a"
            " completion in the same way. Set it to 0, or omit use_transformers_continuous_batching."
        )
    if sampling.stop_strings:
        raise InputError("continuous batching does not support stop_strings. Give stop_token_ids instead")


def _completion(result: Any, stop_ids: set[int], sampling: Sampling) -> Completion:
    ids = list(result.generated_tokens)
    if any(math.isnan(logprob) for logprob in result.logprobs):
        raise FloatingPointError("the model returned NaN logits in continuous batching; its weights are damaged")
    logprobs = [0.0] * len(ids) if sampling.greedy else list(result.logprobs)  # greedy: no choice, probability 1
    return Completion(ids, logprobs, bool(ids) and ids[-1] in stop_ids)
