"""The speed at which this machine samples and trains, from a measurement of a few seconds."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from peft import get_peft_model

from hf_rlhf.models.load import load_causal_lm, load_tokenizer
from hf_rlhf.models.policy import PolicyWithValue
from hf_rlhf.models.precision import current_device
from hf_rlhf.progress import progress_of
from hf_rlhf.quickstart.arguments import QuickstartArguments
from hf_rlhf.quickstart.prompts import quickstart_prompts
from hf_rlhf.quickstart.replies import prompt_row
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.types import Model, Sequences

_FEW, _MANY = 4, 16  # rows
_TOKENS = 4
_LONGEST = 6.0  # seconds that a measurement of many rows may take, as that of few rows foretells


@dataclass(frozen=True)
class Speed:
    """Seconds on this machine, with the quickstart's model, dtype and adapter."""

    load: float  # the model, from disk
    prompt: float  # read one prompt before its first token
    step: float  # sample one token of a batch, whatever its size
    token: float  # and besides for each row of the batch
    forward: float  # pass over one prompt and its reply
    update: float  # forward and backward pass over one

    def replies(self, count: int, batch_size: int, tokens: int) -> float:
        """Return the seconds of sampling `count` replies of `tokens` tokens."""
        return count * self.prompt + tokens * (-(-count // batch_size) * self.step + count * self.token)


def measure_speed(args: QuickstartArguments) -> Speed:
    """Measure this machine; about five seconds, and at most some fifteen on a slow one."""
    with progress_of(6, "     measuring this machine") as advance:
        begun = time.perf_counter()
        tokenizer = load_tokenizer(args.model_name_or_path)
        model: Model = load_causal_lm(args.model_name_or_path, **args.model_kwargs)
        model.to(current_device())
        load = time.perf_counter() - begun
        rows = [prompt_row(text, tokenizer) for text in quickstart_prompts()["train"][:_MANY]]
        _decoding(model, tokenizer, rows[:1])  # the first use of a model reads its weights and packs them
        advance(1)
        first, few = _decoding(model, tokenizer, rows[:_FEW])
        prompt, step, token = (first - few) / _FEW, few * 3 / 4, few / 4 / _FEW  # of a few rows, most is the weights
        advance(1)
        if first * _MANY / _FEW + 2 * _TOKENS * few <= _LONGEST:
            first, many = _decoding(model, tokenizer, rows)
            token = max(many - few, 0.0) / (_MANY - _FEW)
            prompt, step = (first - many) / _MANY, max(few - _FEW * token, 0.0)
        advance(1)
        policy = PolicyWithValue(get_peft_model(model, args.lora(model))).to(current_device())
        length = max(args.max_completion_length * 3 // 4, 1)  # many replies end before the limit
        _passes(policy, rows[:1], length)
        advance(1)
        passes, size = _passes(policy, rows[:_FEW], length), _FEW
        advance(1)
        if sum(passes) * _MANY / _FEW <= _LONGEST:
            passes, size = _passes(policy, rows, length), _MANY
        advance(1)
    forward, backward = (seconds / size for seconds in passes)
    return Speed(load, max(prompt, 0.0), step, token, forward, forward + backward)


def _decoding(model: Model, tokenizer: Any, rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Return the seconds until the first token of a batch, and between two tokens."""
    times = [time.perf_counter()]
    engine = TransformersEngine(model, tokenizer, on_tokens=lambda _: times.append(time.perf_counter()))
    engine.generate([row["prompt_ids"] for row in rows], Sampling(max_completion_length=_TOKENS), range(len(rows)))
    first, *others = (end - start for start, end in pairwise(times))
    return first, median(others) if others else first


def _passes(policy: PolicyWithValue, rows: Sequence[dict[str, Any]], length: int) -> tuple[float, float]:
    """Return the seconds of a forward pass, and of its backward pass, over rows with replies of `length` tokens."""
    prompts = [row["prompt_ids"] for row in rows]
    sequences = Sequences.from_ids(prompts, [(ids * length)[:length] for ids in prompts])
    begun = time.perf_counter()
    output = policy(sequences.to(current_device()), temperature=1.0)
    loss = output.logprobs.sum() + output.values.sum()
    loss.item()  # waits for the device
    middle = time.perf_counter()
    loss.backward()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return middle - begun, time.perf_counter() - middle
