"""Time full fine-tuning and measure its memory: all blocks against the last ones (num_layers_unfrozen).

    OMP_NUM_THREADS=1 python benchmarks/full_fine_tuning.py --layers 8

SmolLM2-135M-Instruct in float32, with the batches of trunk.py. Each row is a process of its own, for its peak of
resident memory. Seconds of the processor, for one thread; the fastest round counts, after one that warms up.
"""

import argparse
import json
import subprocess
import sys
import tempfile

import torch
from trunk import TimedTrainer, make_config, one_round

from hf_rlhf.models.load import EMBEDDED_MODEL, load_causal_lm, load_tokenizer
from hf_rlhf.planning.memory import peak_bytes


def measure(layers: int | None, reuse: bool, rounds: int) -> dict[str, float]:
    """Measure the seconds and bytes of one variant, in this process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(folder, num_layers_unfrozen=layers, reuse_trunk=reuse)
        model = load_causal_lm(EMBEDDED_MODEL, dtype="float32")
        trainer = TimedTrainer(model, None, config, processing_class=load_tokenizer(EMBEDDED_MODEL))
        each = [one_round(trainer, seed) for seed in range(rounds + 1)][1:]
    best = {phase: min(seconds[phase] for seconds in each) for phase in ("score", "update")}
    return best | {"peak": peak_bytes(torch.device("cpu")) or 0.0}


def main() -> None:
    """Print a table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--one", help="measure this variant as JSON: [layers, reuse]")
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(measure(*json.loads(args.one), args.rounds)))
        return
    print("| blocks trained | trunk computed | forward pass, s | an update, s | peak, GB |\n|---|---|---|---|---|")
    for layers, reuse in ((None, True), (args.layers, False), (args.layers, True)):
        command = [sys.executable, __file__, "--rounds", str(args.rounds), "--one", json.dumps([layers, reuse])]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        trunk = "-" if layers is None else "once" if reuse else "in every pass"
        blocks = "all" if layers is None else f"the last {layers}"
        print(
            f"| {blocks} | {trunk} | {row['score']:.2f} | {row['update']:.2f} | {row['peak'] / 1e9:.2f} |", flush=True
        )


if __name__ == "__main__":
    main()
