"""One completion by a vLLM server: the request, and what the answer to it means."""

from typing import Any

import torch

from hf_rlhf.endpoints.answers import Answer
from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import base_of
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.rollout.stops import stop_token_ids
from hf_rlhf.types import Completion, Model

_STOP_STRINGS = 4  # as many as the server takes
_MASKED = -9000.0  # the server writes -9999 for the log-probability of a token that was cut off


def completion_request(model: Model, tokenizer, sampling: Sampling) -> dict[str, Any]:
    """Return what all requests have in common.

    Every option is there: for others the server asks the model's own config.
    """
    if len(sampling.stop_strings) > _STOP_STRINGS:
        raise InputError(f"stop_strings: a vLLM server takes {_STOP_STRINGS} of them, not {len(sampling.stop_strings)}")
    if sampling.first_greedy_tokens:
        raise InputError(
            f"first_greedy_tokens={sampling.first_greedy_tokens} is invalid: a vLLM server draws every token of a"
            " completion in the same way. Set it to 0, or omit use_vllm."
        )
    truncated = sampling.truncated
    return {
        "max_tokens": sampling.max_completion_length,
        "temperature": float(sampling.temperature),
        "top_k": sampling.top_k if truncated else 0,
        "top_p": sampling.top_p if truncated else 1.0,
        "min_p": sampling.min_p if truncated else 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": True,  # the end tokens are among these, and no others end a completion
        "stop_token_ids": stop_token_ids(base_of(model), tokenizer, sampling),
        "stop": list(sampling.stop_strings),
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,  # stop strings may be made of them
        "logprobs": logprobs_wanted(sampling, vocabulary_of(model)),
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


def failure_of(answer: Answer) -> str | None:
    """Return why the server, as it is now, cannot complete anything; None when it can."""
    if answer.status == 404 and "does not exist" in answer.message:
        return "it does not know the adapter"
    if answer.status >= 500 or _ended_without_reason(answer):
        return answer.message
    return None


def completion_of(answer: Answer, sampling: Sampling, vocab_size: int) -> Completion:
    """Read the completion. Raises `InputError` for an answer that does not hold what was asked for."""
    try:
        choice = answer.json["choices"][0]
        ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        candidates = choice["logprobs"]["top_logprobs"]
        complete = len(ids) == len(logprobs) == len(candidates) and 0 < len(ids) <= sampling.max_completion_length
        stopped = {"stop": True, "length": False}[choice["finish_reason"]]
    except (KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"its answer is not of a vLLM server that knows return_token_ids (0.10.2 or later): {answer.text[:300]!r}"
        ) from error
    if not complete:
        raise InputError(f"it gave {len(logprobs)} log-probabilities for {len(ids)} tokens")
    if max(ids) >= vocab_size:
        raise InputError(
            f"it sampled token {max(ids)}, and the policy's vocabulary has {vocab_size}; it serves another model"
        )
    support = [_allowed_ids(each, sampling, vocab_size) for each in candidates] if sampling.truncated else None
    return Completion(ids, [0.0] * len(ids) if sampling.greedy else logprobs, stopped, support)


def logprobs_wanted(sampling: Sampling, vocab_size: int) -> int:
    """Return the number of log-probabilities a token needs: with top-k all that may be left, more than k when some tie.

    In bf16 many do: 59 of SmolLM2-135M's were left by a top-k of 50 within some hundred tokens.

    Raises `InputError` for top-p or min-p alone, which may leave any number of tokens.
    """
    if not sampling.truncated:
        return 0
    if sampling.top_k == 0:
        raise InputError(
            "top_p and min_p need top_k besides with use_vllm: the trainer has to know every token that could have been"
            " sampled, and a vLLM server lists only so many"
        )
    return min(2 * sampling.top_k + 64, vocab_size)


def vocabulary_of(model: Model) -> int:
    """Return the number of tokens that the model knows."""
    return base_of(model).config.get_text_config().vocab_size


def _ended_without_reason(answer: Answer) -> bool:
    """Return whether the server broke a completion off, as it does when it ends."""
    content = answer.json
    choices = content.get("choices") if isinstance(content, dict) else None
    return bool(choices) and choices[0].get("finish_reason") in ("abort", "error")


def _allowed_ids(candidates: dict[str, float], sampling: Sampling, vocab_size: int) -> torch.Tensor:
    """Return the ids `(K,)` of the tokens that were not cut off, from the likeliest ones by `token_id:<id>`."""
    ids = sorted(int(name.removeprefix("token_id:")) for name, logprob in candidates.items() if logprob > _MASKED)
    listed = logprobs_wanted(sampling, vocab_size)
    if len(ids) >= listed and listed < vocab_size:
        raise InputError(
            f"more than {len(ids)} tokens were left by top_k={sampling.top_k}, so many are equally likely, and the"
            " server lists no more. Take a smaller top_k, or none"
        )
    return torch.tensor(ids, dtype=torch.int)
