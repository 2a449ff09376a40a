"""Four completions of each prompt: the prompt computed once, against four copies of it.

    OMP_NUM_THREADS=1 python benchmarks/several_completions.py                # SmolLM2-135M, a few minutes on a core
    OMP_NUM_THREADS=1 python benchmarks/several_completions.py --prompt_tokens 512 --rounds 5
    OMP_NUM_THREADS=1 python benchmarks/several_completions.py --dtype float64 --rounds 1   # all are equal
    OMP_NUM_THREADS=1 python benchmarks/several_completions.py --temperature 0              # greedy

Both ways take turns, and the median of the rounds counts. They give the same completions but for rounding: matrices
of another shape are summed in another order, so the cumulative probabilities of a token differ in the last digits,
and a draw that falls between the two takes the next token of the vocabulary. For completions that part, the script
prints how near the draw was to the edge between two tokens, and how far the two ways lay apart there.

The prompts are random tokens, or with `--texts` sentences; behind random tokens a model is unsure, so edges are dense.
"""

import argparse
import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor

from hf_rlhf.models.load import EMBEDDED_MODEL, load_causal_lm, load_tokenizer
from hf_rlhf.rollout import Sampling, TransformersEngine, engines
from hf_rlhf.rollout.sampling import row_seed, uniform_draws

ONCE, COPIES = "computed once", "copies"
TEXTS = (
    "The capital of France is",
    "Write a short story about a cat that lives on a boat.",
    "To make bread you need flour, water, salt and yeast. First",
    "The three laws of motion were written down by Isaac Newton, who",
)
Probabilities = dict[float, Tensor]  # by the draw, which no two tokens share: (V,)

compute_once, inverse_transform = engines._compute_prompts_once, engines._inverse_transform


def generate(engine: TransformersEngine, prompts: Sequence[Sequence[int]], sampling: Sampling, way: str) -> list:
    """Return the ids that one way samples."""
    engines._compute_prompts_once = compute_once if way == ONCE else lambda *_: None
    return [each.ids for each in engine.generate(prompts, sampling, _seeds(len(prompts)))]


def _seeds(count: int) -> list[int]:
    return [row_seed("several", row) for row in range(count)]


def recorded(engine: TransformersEngine, prompts: Sequence[Sequence[int]], sampling: Sampling, way: str):
    """Return the ids that one way samples, and the probabilities that each token was drawn from."""
    found: Probabilities = {}

    def record(probabilities: Tensor, draws: Tensor) -> Tensor:
        found.update(zip(draws.tolist(), probabilities.clone(), strict=True))
        return inverse_transform(probabilities, draws)

    engines._inverse_transform = record
    try:
        return generate(engine, prompts, sampling, way), found
    finally:
        engines._inverse_transform = inverse_transform


def explain(engine: TransformersEngine, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
    """Print how many completions are equal, and of the others where and why they part."""
    one, other = (recorded(engine, prompts, sampling, way) for way in (ONCE, COPIES))
    parts = [_first_difference(a, b) for a, b in zip(one[0], other[0], strict=True)]
    print(f"{parts.count(None)} of {len(prompts)} completions are equal")
    if sampling.greedy:
        return
    draws = uniform_draws(_seeds(len(prompts)), sampling.max_completion_length).tolist()
    of_tokens: dict[bool, list[float]] = {True: [], False: []}  # whether it is the first token
    for row, ids in enumerate(one[0]):
        for step in range(len(ids) if parts[row] is None else parts[row] + 1):
            gap = (one[1][draws[row][step]].log() - other[1][draws[row][step]].log()).nan_to_num(0).abs().max().item()
            of_tokens[step == 0].append(gap)
    print(f"log-probabilities of the first token differ by at most {max(of_tokens[True]):.1e}")
    print(f"of later tokens behind the same ones, by at most {max(of_tokens[False]):.1e}")
    for row, step in enumerate(parts):
        if step is None:
            continue
        draw = draws[row][step]
        edge = min(one[0][row][step], other[0][row][step])  # the end of this token is the edge between the two
        ends = [found[draw].cumsum(dim=0) for _, found in (one, other)]
        ends = [(each[edge] - draw * each[-1]).item() for each in ends]
        print(f"row {row} parts at token {step + 1}: the edge is {ends[0]:+.1e} and {ends[1]:+.1e} from its draw")


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    if one == other:
        return None
    return next((t for t, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)) - 1)


def prompts_of(args: argparse.Namespace, tokenizer) -> list[list[int]]:
    """Return `num_generations` copies of each prompt."""
    generator = torch.Generator().manual_seed(0)
    longest = args.prompt_tokens
    lengths = [longest - longest * n // (2 * args.prompts) for n in range(args.prompts)]  # from the half on
    distinct = [torch.randint(1000, 20_000, (length,), generator=generator).tolist() for length in lengths]
    if args.texts:
        distinct = [tokenizer(text)["input_ids"] for text in TEXTS]
    return [prompt for prompt in distinct for _ in range(args.num_generations)]


def main() -> None:
    """Measure what the flags ask for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--num_generations", type=int, default=4)
    parser.add_argument("--prompt_tokens", type=int, default=128)
    parser.add_argument("--completion_tokens", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--texts", action="store_true", help="sentences instead of random tokens")
    parser.add_argument("--rounds", type=int, default=3, help="that are timed")
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.model)
    double = args.dtype == "float64"  # in which no run computes
    model = load_causal_lm(args.model, dtype="float32" if double else args.dtype).eval()
    engine = TransformersEngine(model.double() if double else model, tokenizer)
    prompts = prompts_of(args, tokenizer)
    sampling = Sampling(max_completion_length=args.completion_tokens, temperature=args.temperature)
    explain(engine, prompts, sampling)
    times: dict[str, list[float]] = {ONCE: [], COPIES: []}
    for _ in range(args.rounds):
        for way, taken in times.items():
            start = time.perf_counter()
            generate(engine, prompts, sampling, way)
            taken.append(time.perf_counter() - start)
    for way, taken in times.items():
        if taken:
            print(f"{way}: {median(taken):.2f} s ({', '.join(f'{each:.2f}' for each in taken)})")


if __name__ == "__main__":
    main()
