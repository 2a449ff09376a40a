"""Engines turn prompt ids into completions.

Here that of transformers, with static batches sorted by length. `continuous_batching.py` and `vllm/engine.py` have
the others.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hf_rlhf.distributed import in_step
from hf_rlhf.models.adapters import base_of, compute_in_base_dtype, keep_modes
from hf_rlhf.models.fast.cache import cache_argument, cache_of_rows
from hf_rlhf.ops.padding import pad_sequences
from hf_rlhf.rollout.graphs import GraphedSteps, GraphsDiffer
from hf_rlhf.rollout.sampling import Sampling, uniform_draws
from hf_rlhf.rollout.stops import stop_token_ids
from hf_rlhf.types import Completion, Model

logger = logging.getLogger(__name__)

_HEAD_PIECE, _WIDE_HEAD = 1536, 8192  # tokens of a piece, and of the smallest head that is multiplied in pieces
_MOST_THREADS = 8  # that share a piece; each piece is a parallel region of its own


class Engine(Protocol):
    """Anything that samples completions."""

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """Return one completion for each prompt, in order.

        Completion b depends on `prompts[b]` and `seeds[b]` alone.
        """
        ...


class TransformersEngine:
    """Sampling by `model.generate` on batches of prompts of similar length.

    A prompt that is in a batch several times is computed once.

    Tokens are drawn inside a logits processor, by inverse transform from a row's own random numbers, so that the draw,
    its log-probability and the tokens it could have been are all of the distribution that was really sampled from.

    Args:
        model: the policy.
        tokenizer: its tokenizer.
        batch_size: most prompts of a batch; by default all that `generate` gets.
        on_tokens: called after each decoding step with the number of tokens that it sampled, to show progress.
        use_cuda_graphs: on a CUDA device, replay decoding steps as CUDA graphs where the model's code allows it.

    Attributes:
        in_step: whether every rank makes the same number of forward passes, as it has to where the model's blocks are
            gathered for each. Then all ranks call `generate` together, and a batch lasts as long as its longest
            completion.
        graphs: how decoding steps are replayed as CUDA graphs; None for the plain way.
    """

    def __init__(
        self,
        model: Model,
        tokenizer,
        batch_size: int | None = None,
        on_tokens: Callable[[int], None] | None = None,
        *,
        use_cuda_graphs: bool = True,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.on_tokens = on_tokens
        self.in_step = False
        self.graphs = GraphedSteps() if use_cuda_graphs else None

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """Like `Engine.generate`. Raises `FloatingPointError` when the model returns NaN logits."""
        by_length = sorted(range(len(prompts)), key=lambda b: len(prompts[b]))
        size = self.batch_size or max(len(prompts), 1)
        completions: dict[int, Completion] = {}
        with keep_modes(self.model):
            self.model.eval()
            batches = [by_length[start : start + size] for start in range(0, len(prompts), size)]
            for rows in in_step(batches, []) if self.in_step else batches:
                batch = self._try_graphs([prompts[b] for b in rows], sampling, [seeds[b] for b in rows])
                completions.update(zip(rows, batch, strict=True))
        return [completions[b] for b in range(len(prompts))]

    def _try_graphs(self, prompts: list[Sequence[int]], sampling: Sampling, seeds: list[int]) -> list[Completion]:
        try:
            return self._generate_batch(prompts, sampling, seeds)
        except GraphsDiffer as error:
            logger.warning("sampling falls back to steps without CUDA graphs, which is slower but equal: %s", error)
            return self._generate_batch(prompts, sampling, seeds)

    def _generate_batch(self, prompts: list[Sequence[int]], sampling: Sampling, seeds: list[int]) -> list[Completion]:
        """Generate completions of one batch. When half of the rows have stopped, the others continue without them.

        If ranks run in step and this one has no rows, it runs one dummy row of a single token and drops the result.
        """
        none_here = not prompts
        if none_here:
            prompts, seeds = [[0]], [0]
        causal_lm = base_of(self.model)
        device = next(causal_lm.parameters()).device
        ids, attention_mask = _left_padded(prompts, self.tokenizer.pad_token_id or 0, device)
        width, longest = ids.shape[1], sampling.max_completion_length
        draws = uniform_draws(seeds, longest).to(device)
        stop_ids, stop_strings = self._stop_ids(sampling), self._stop_strings(sampling)
        cache, cache_name = cache_of_rows(causal_lm, width + longest), str(cache_argument(causal_lm))
        completions = [Completion([], [], False, [] if sampling.truncated else None) for _ in prompts]
        running, done = list(range(len(prompts))), 0
        with (
            _own_generation_config(causal_lm, self.tokenizer.pad_token_id),
            _contiguous_head_input(causal_lm),
            nullcontext() if self.in_step else _head_in_pieces(causal_lm),
            compute_in_base_dtype(self.model),
            nullcontext()
            if self.graphs is None or self.in_step
            else self.graphs.replace_forward(causal_lm, cache) as steps,
        ):
            if cache is not None and not self.in_step:
                _compute_prompts_once(causal_lm, prompts, ids, attention_mask, {cache_name: cache})
            while running and done < longest:
                draw = _RowSampler(sampling, draws[running, done:], self.on_tokens, done=done)
                stop = _StopRecorder(
                    stop_ids,
                    stop_strings,
                    width,
                    len(running),
                    device,
                    enough=0 if none_here else len(running) / (1 if cache is None or self.in_step else 2),
                )
                ids = causal_lm.generate(
                    input_ids=ids,
                    attention_mask=attention_mask,
                    **({} if cache is None else {cache_name: cache}),
                    max_new_tokens=longest - done,
                    logits_processor=[*_warpers(sampling), draw],
                    stopping_criteria=[stop],
                    synced_gpus=self.in_step,  # by itself it is True wherever FSDP or ZeRO-3 is at work
                )
                if none_here:
                    return []
                lengths = stop.lengths.tolist()
                draw.add_to(
                    [completions[b] for b in running], ids[:, width + done :], [n and n - done for n in lengths]
                )
                new, done = ids.shape[1] - width - done, ids.shape[1] - width
                rest = [row for row, length in enumerate(lengths) if length == 0]
                running, ids = [running[row] for row in rest], ids[rest]
                attention_mask = torch.cat([attention_mask[rest], attention_mask.new_ones(len(rest), new)], dim=1)
                if steps is not None:
                    steps.forget()
                if cache is not None and rest:
                    cache.batch_select_indices(torch.tensor(rest, device=device))
        return completions

    def _stop_ids(self, sampling: Sampling) -> list[int]:
        return stop_token_ids(base_of(self.model), self.tokenizer, sampling)

    def _stop_strings(self, sampling: Sampling):
        if not sampling.stop_strings:
            return None
        from transformers import StopStringCriteria

        return StopStringCriteria(self.tokenizer, list(sampling.stop_strings))


def _compute_prompts_once(
    causal_lm, prompts: list[Sequence[int]], ids: Tensor, attention_mask: Tensor, cache: dict[str, Any]
) -> None:
    """Fill the cache, given by the name of its argument, with prompts that are in the batch several times.

    Each is computed once, but for its last token, and its keys and values are repeated.
    """
    distinct: dict[tuple[int, ...], int] = {}
    which = [distinct.setdefault(tuple(prompt), len(distinct)) for prompt in prompts]
    if len(distinct) == len(prompts) or ids.shape[1] < 2:
        return
    first = [which.index(number) for number in range(len(distinct))]
    causal_lm.generate(input_ids=ids[first, :-1], attention_mask=attention_mask[first, :-1], **cache, max_new_tokens=1)
    for keys_and_values in cache.values():
        keys_and_values.batch_select_indices(torch.tensor(which, device=ids.device))


def _left_padded(prompts: list[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    input_ids = pad_sequences(prompts, pad, side="left")
    attention_mask = pad_sequences([[1] * len(ids) for ids in prompts], 0, side="left")
    return input_ids.to(device), attention_mask.to(device)


def truncated_logits(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the logits `(N, V)` that a token is drawn by: divided by the temperature, -inf where cut off."""
    for warper in _warpers(sampling):
        logits = warper(None, logits)  # pyright: ignore[reportArgumentType]
    return logits


def _warpers(sampling: Sampling):
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    processors = LogitsProcessorList()
    if not sampling.greedy:
        if sampling.temperature != 1.0:
            processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k > 0:
            processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            processors.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p > 0:
            processors.append(MinPLogitsWarper(sampling.min_p))
    return processors


@contextmanager
def _own_generation_config(causal_lm, pad_token_id: int | None) -> Iterator[None]:
    """Suspend the model's generation config: its repetition penalty or top-p would bend the distribution unseen."""
    from transformers import GenerationConfig

    original = causal_lm.generation_config
    causal_lm.generation_config = GenerationConfig(do_sample=False, pad_token_id=pad_token_id or 0, use_cache=True)
    try:
        yield
    finally:
        causal_lm.generation_config = original


@contextmanager
def _contiguous_head_input(causal_lm) -> Iterator[None]:
    """Hand the head a contiguous matrix: for the slice `hidden[:, -1:]` it would copy its whole weight once a row."""
    hook = causal_lm.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _head_in_pieces(causal_lm) -> Iterator[None]:
    """Let a wide head in fp32 on a CPU multiply a piece of the vocabulary at a time, into the same logits.

    MKL packs up to 6,000 tokens of the vocabulary at once, by 192 states: 5 MB, five times the L2 cache of a core. A
    packed piece fits into the cache. The logits are the same to the bit, but for rounding where one token is left as a
    piece.
    """
    head = causal_lm.get_output_embeddings()
    if not _pays_in_pieces(head):
        yield
        return

    def in_pieces(states: Tensor) -> Tensor:
        rows = states.flatten(end_dim=-2)
        if len(rows) < 2 or torch.is_autocast_enabled("cpu"):
            return nn.functional.linear(states, head.weight)
        logits = rows.new_empty(len(rows), len(head.weight))
        for weight, piece in zip(head.weight.split(_HEAD_PIECE), logits.split(_HEAD_PIECE, dim=1), strict=True):
            torch.mm(rows, weight.t(), out=piece)
        return logits.view(*states.shape[:-1], -1)

    head.forward = in_pieces
    try:
        yield
    finally:
        del head.forward


def _pays_in_pieces(head) -> bool:
    return (
        torch.backends.mkl.is_available()
        and torch.get_num_threads() <= _MOST_THREADS
        and type(head) is nn.Linear  # no adapter, nothing quantized
        and head.bias is None
        and (head.weight.device.type, head.weight.dtype) == ("cpu", torch.float32)
        and len(head.weight) >= _WIDE_HEAD
        and "forward" not in vars(head)  # accelerate's hooks replace it
    )


class _RowSampler:
    """A logits processor that draws the next token of each row and leaves it as the only choice.

    Args:
        sampling: how.
        draws: numbers in [0, 1), `(B, T)`, one for each token to come.
        on_tokens: see `TransformersEngine`.
        done: tokens that the rows have already.
    """

    supports_continuous_batching = False

    def __init__(
        self, sampling: Sampling, draws: Tensor, on_tokens: Callable[[int], None] | None = None, *, done: int = 0
    ):
        self.sampling = sampling
        self.draws = draws
        self.on_tokens = on_tokens
        self.forced = max(sampling.first_greedy_tokens - done, 0)  # tokens to come without a draw
        self.logprobs: list[Tensor] = []  # T tensors (B,)
        self.support: list[list[Tensor]] = []  # T lists of B tensors (K,)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = len(self.logprobs)
        forced = step < self.forced
        if self.sampling.greedy or forced:
            best, tokens = scores.max(dim=-1)  # (B,), (B,)
            _require_numbers(best, step)
            self.logprobs.append(torch.zeros_like(best))  # no choice: probability 1
        else:
            probabilities = scores.softmax(dim=-1)  # (B, V)
            _require_numbers(probabilities[:, 0], step)
            tokens = _inverse_transform(probabilities, self.draws[:, step])
            self.logprobs.append(probabilities.gather(1, tokens[:, None]).squeeze(1).log())
        if self.on_tokens is not None:
            self.on_tokens(len(tokens))
        if self.sampling.truncated:
            allowed = [row.isfinite().nonzero().squeeze(1).int().cpu() for row in scores]
            self.support.append(list(tokens[:, None].int().cpu()) if forced else allowed)
        return torch.full_like(scores, float("-inf")).scatter_(1, tokens[:, None], 0.0)

    def add_to(self, completions: list[Completion], tokens: Tensor, lengths: list[int]) -> None:
        """Add what was drawn, `(B, T)`, to the completions; `lengths` says after how many tokens each stopped, or 0."""
        logprobs = torch.stack(self.logprobs, dim=1).tolist()
        for b, (completion, row) in enumerate(zip(completions, tokens.tolist(), strict=True)):
            count = lengths[b] or len(row)
            completion.ids += row[:count]
            completion.logprobs += logprobs[b][:count]
            completion.stopped = lengths[b] > 0
            if completion.support is not None:
                completion.support = [*completion.support, *(ids[b] for ids in self.support[:count])]


def _require_numbers(probe: Tensor, step: int) -> None:
    """Raise for NaN logits: one makes every probability of its row NaN, and the largest logit too."""
    if probe.isnan().any():
        raise FloatingPointError(
            f"the model returned NaN logits for token {step + 1} of a completion; its weights are damaged or its dtype"
            " overflows (try dtype bfloat16 or float32)"
        )


def _inverse_transform(probabilities: Tensor, draws: Tensor) -> Tensor:
    """Return the first token whose cumulative probability exceeds the draw. `(B, V), (B,) -> (B,)`."""
    cumulative = probabilities.cumsum(dim=-1)
    # Rounding can leave the sum a hair off 1, and the largest draw beyond the last token with any probability.
    tokens = torch.searchsorted(cumulative, (draws * cumulative[:, -1])[:, None], right=True).squeeze(1)
    tokens = tokens.clamp(max=probabilities.shape[1] - 1)
    possible = probabilities.gather(1, tokens[:, None]).squeeze(1) > 0
    return torch.where(possible, tokens, probabilities.argmax(dim=-1))


class _StopRecorder:
    """A stopping criterion that remembers after how many tokens each row stopped; 0 while it has not.

    Generation ends when `enough` of the rows have stopped. A step beyond that end, which transformers takes on some
    devices before it looks and then drops, is not remembered.
    """

    def __init__(
        self,
        stop_ids: list[int],
        stop_strings,
        prompt_width: int,
        rows: int,
        device: torch.device,
        *,
        enough: float,
    ):
        self.eos_token_id = torch.tensor(stop_ids, device=device)  # its presence makes `generate` pad finished rows
        self.stop_strings = stop_strings
        self.prompt_width = prompt_width
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.enough = enough

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        ended = (self.lengths > 0).sum() >= self.enough
        done = torch.isin(input_ids[:, -1], self.eos_token_id) & ~ended
        if self.stop_strings is not None:
            done = done | (self.stop_strings(input_ids[:, self.prompt_width :], scores) & ~ended)
        self.lengths = torch.where((self.lengths == 0) & done, input_ids.shape[1] - self.prompt_width, self.lengths)
        stopped = self.lengths > 0
        return torch.ones_like(stopped) if stopped.sum() >= self.enough else stopped
