"""Four completions of each prompt: the prompt computed once, against four copies of it.

    OMP_NUM_THREADS=1 python benchmarks/several_completions.py                # SmolLM2-135M, a few minutes on a core
    OMP_NUM_THREADS=1 python benchmarks/several_completions.py --prompt_tokens 512 --rounds 5

Both ways take turns, and the median of the rounds counts. They have to give the same completions.
"""

import argparse
import time
from collections.abc import Sequence
from statistics import median

import torch

from hf_rlhf.models.load import EMBEDDED_MODEL, load_causal_lm, load_tokenizer
from hf_rlhf.rollout import Sampling, TransformersEngine, engines
from hf_rlhf.rollout.sampling import row_seed


def seconds(engine: TransformersEngine, prompts: Sequence[Sequence[int]], sampling: Sampling) -> tuple[float, list]:
    """Return how long one call takes, and the ids that it sampled."""
    seeds = [row_seed("several", row) for row in range(len(prompts))]
    start = time.perf_counter()
    completions = engine.generate(prompts, sampling, seeds)
    return time.perf_counter() - start, [completion.ids for completion in completions]


def main() -> None:
    """Measure what the flags ask for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--num_generations", type=int, default=4)
    parser.add_argument("--prompt_tokens", type=int, default=128)
    parser.add_argument("--completion_tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.model)
    engine = TransformersEngine(load_causal_lm(args.model, dtype=args.dtype).eval(), tokenizer)
    generator = torch.Generator().manual_seed(0)
    longest = args.prompt_tokens
    lengths = [longest - longest * n // (2 * args.prompts) for n in range(args.prompts)]  # from the half on
    distinct = [torch.randint(1000, 20_000, (length,), generator=generator).tolist() for length in lengths]
    prompts = [prompt for prompt in distinct for _ in range(args.num_generations)]
    sampling = Sampling(max_completion_length=args.completion_tokens)
    once = engines._compute_prompts_once
    times: dict[str, list[float]] = {"computed once": [], "copies": []}
    for _ in range(args.rounds):
        found = []
        for name, compute in (("computed once", once), ("copies", lambda *_: None)):
            engines._compute_prompts_once = compute
            taken, ids = seconds(engine, prompts, sampling)
            times[name].append(taken)
            found.append(ids)
        equal = sum(one == other for one, other in zip(*found, strict=True))
        print(f"{equal} of {len(prompts)} completions are equal", flush=True)
    for name, taken in times.items():
        print(f"{name}: {median(taken):.2f} s ({', '.join(f'{each:.2f}' for each in taken)})")


if __name__ == "__main__":
    main()
