"""Time a token of each phase, at growing rollout batches and growing completions: does work cost what it should?

    OMP_NUM_THREADS=1 python benchmarks/growth.py     # a model of 7M random weights, about two minutes
    python benchmarks/growth.py --model embedded:smollm2-135m-instruct --dtype bfloat16 --rounds 3

For one thread on a CPU. Trainers of all sizes are alive at once and take turns, so that a machine that slows down slows
all of them; of each size the fastest round counts. Completions have exactly the length asked for. Micro-batches hold
eight sequences everywhere.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hf_rlhf import PPOConfig, PPOTrainer
from hf_rlhf.models.load import EMBEDDED_MODEL, load_causal_lm, load_tokenizer

PHASES = ("sample", "forward_pass", "update")
MICRO_BATCH, PROMPT_LENGTH = 8, 4


class Size(NamedTuple):
    """One rollout: how many completions, of how many tokens."""

    completions: int
    length: int


BATCHES = [Size(8, 32), Size(32, 32), Size(128, 32)]
LENGTHS = [Size(16, 32), Size(16, 96), Size(16, 256)]


def random_llama() -> Any:
    """Make a model of 7M weights: enough that arithmetic, and not Python, takes the time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


class TimedTrainer(PPOTrainer):
    """A trainer that counts processor seconds by phase, which other processes do not change."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def counted(self, phase: str) -> Iterator[None]:
        """Set the seconds of a phase to those of the block."""
        start = time.process_time()
        yield
        self.seconds[phase] = time.process_time() - start

    def sample(self, rows, seeds):
        with self.counted("sample"):
            return super().sample(rows, seeds)

    def forward_pass(self, trajectories, **kwargs):
        with self.counted("forward_pass"):
            return super().forward_pass(trajectories, **kwargs)

    def step(self, *args, **kwargs):
        with self.counted("update"):
            metrics = super().step(*args, **kwargs)
        self.seconds["update"] -= self.seconds["forward_pass"]
        return metrics


def make_trainer(size: Size, model: Any, tokenizer: Any, folder: Path) -> TimedTrainer:
    """Make a trainer of `size` for a manual loop; a completion ends by its length alone."""
    from peft import LoraConfig

    model.generation_config.eos_token_id = None
    return TimedTrainer(
        model,
        None,
        PPOConfig(
            output_dir=str(folder / f"{size.completions}x{size.length}"),
            per_device_train_batch_size=MICRO_BATCH,
            num_mini_batches=size.completions // MICRO_BATCH,
            num_ppo_epochs=1,
            max_steps=10**6,
            max_completion_length=size.length,
            learning_rate=1e-5,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def seconds_of_an_iteration(trainer: TimedTrainer, size: Size) -> dict[str, float]:
    """Time sampling, forward passes and one update."""
    prompts = [[1 + (7 * b + 3 * p) % 20 for p in range(PROMPT_LENGTH)] for b in range(size.completions)]
    completions = trainer.generate(prompts)
    assert all(len(completion.ids) == size.length for completion in completions)
    trainer.step(prompts, completions, rewards=[float(b % 2) for b in range(size.completions)])
    return trainer.seconds


def seconds_a_token(trainers: dict[Size, TimedTrainer], rounds: int) -> Iterator[dict[Size, dict[str, float]]]:
    """Return the fastest round by size and phase, after a warm-up, divided by the tokens of the phase.

    Sampling is paid by sampled token; the other phases by every token of the sequences.
    """
    for size, trainer in trainers.items():
        seconds_of_an_iteration(trainer, size)
    fastest = {size: dict.fromkeys(PHASES, float("inf")) for size in trainers}
    for _ in range(rounds):
        for size, trainer in trainers.items():
            seconds = seconds_of_an_iteration(trainer, size)
            for phase in PHASES:
                tokens = size.completions * (size.length + (0 if phase == "sample" else PROMPT_LENGTH))
                fastest[size][phase] = min(fastest[size][phase], seconds[phase] / tokens)
        yield fastest


def growth(results: dict[Size, dict[str, float]]) -> dict[Size, dict[str, float]]:
    """Return the seconds per token, by size and phase, as multiples of those of the first size."""
    first = next(iter(results.values()))
    return {size: {phase: result[phase] / first[phase] for phase in PHASES} for size, result in results.items()}


def table(results: dict[Size, dict[str, float]]) -> str:
    """Return the milliseconds per token, and their ratio to those of the smallest size."""
    multiples = growth(results)
    lines = ["| completions | tokens of each | " + " | ".join(f"{phase}, ms a token" for phase in PHASES) + " |"]
    lines.append("|---|---|" + "---|" * len(PHASES))
    for size, result in results.items():
        cells = [f"{1000 * result[phase]:.3f} ({multiples[size][phase]:.2f}x)" for phase in PHASES]
        lines.append(f"| {size.completions} | {size.length} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print one table for growing batches and one for growing completions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a path or name; by default random weights")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.model or EMBEDDED_MODEL)
    tokenizer.eos_token = tokenizer.chat_template = None  # nothing ends a completion but its length
    for sizes in (BATCHES, LENGTHS):
        with tempfile.TemporaryDirectory() as folder:
            trainers = {
                size: make_trainer(
                    size,
                    load_causal_lm(args.model, dtype=args.dtype) if args.model else random_llama(),
                    tokenizer,
                    Path(folder),
                )
                for size in sizes
            }
            *_, results = seconds_a_token(trainers, args.rounds)
            print(table(results) + "\n", flush=True)


if __name__ == "__main__":
    main()
