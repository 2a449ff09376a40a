"""Time forward passes and updates with LoRA on all, half and a quarter of the blocks, the trunk computed once or each time.

    OMP_NUM_THREADS=1 python benchmarks/trunk.py --dtypes bfloat16 float32

SmolLM2-135M-Instruct, LoRA r16 on every linear layer of those blocks, rollouts of 32, prompts of 16 to 32 tokens,
completions of 32, updates of 16 sequences. Seconds of the processor, for one thread: on a busy machine they stay nearly
the same, and those of the clock do not. Trainers of one dtype take turns; of each the fastest round counts, after one
that warms up.
"""

import argparse
import random
import tempfile
import time
from typing import Any

import torch

from hf_rlhf import PPOConfig, PPOTrainer
from hf_rlhf.models.load import EMBEDDED_MODEL, load_causal_lm, load_tokenizer
from hf_rlhf.recipes.arguments import ModelArguments, peft_config

COMPLETIONS, LENGTH = 32, 32
VARIANTS = [("all", True), ("0.5", False), ("0.5", True), ("0.25", False), ("0.25", True)]


class TimedTrainer(PPOTrainer):
    """A trainer that counts seconds of the processor of forward passes (policy, reference, values) and of updates."""

    seconds: dict[str, float]

    def _timed(self, phase: str, call: Any, *args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        result = call(*args, **kwargs)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.process_time() - start
        return result

    def forward_pass(self, *args, **kwargs):
        return self._timed("score", super().forward_pass, *args, **kwargs)

    def training_step(self, *args, **kwargs):
        return self._timed("update", super().training_step, *args, **kwargs)


def make_config(folder: str, **flags: Any) -> PPOConfig:
    """Return the settings of a manual loop: one epoch of two updates per iteration."""
    return PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=COMPLETIONS // 2,
        num_mini_batches=2,
        num_ppo_epochs=1,
        max_completion_length=LENGTH,
        max_steps=1000,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        **flags,
    )


def make_trainer(folder: str, dtype: str, layers: str, reuse: bool) -> TimedTrainer:
    """Make a trainer of LoRA on some of the blocks."""
    model, config = load_causal_lm(EMBEDDED_MODEL, dtype=dtype), make_config(folder, reuse_trunk=reuse)
    lora = peft_config(ModelArguments(lora_r=16, lora_layers=layers), model)
    return TimedTrainer(model, None, config, processing_class=load_tokenizer(EMBEDDED_MODEL), peft_config=lora)


def one_round(trainer: TimedTrainer, seed: int) -> dict[str, float]:
    """Return the seconds of the forward pass over a rollout of random tokens and of one of its updates."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(1000, 40000) for _ in range(rng.randint(16, 32))] for _ in range(COMPLETIONS)]
    completions = [[rng.randrange(1000, 40000) for _ in range(LENGTH)] for _ in range(COMPLETIONS)]
    trainer.seconds = {}
    trainer.step(prompts, completions, [rng.random() for _ in range(COMPLETIONS)])
    return {"score": trainer.seconds["score"], "update": trainer.seconds["update"] / 2}


def main() -> None:
    """Print a table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| dtype | blocks with LoRA | trunk | forward pass, s | update, s |\n|---|---|---|---|---|")
    for dtype in args.dtypes:
        with tempfile.TemporaryDirectory() as folder:
            trainers = [make_trainer(f"{folder}/{n}", dtype, *variant) for n, variant in enumerate(VARIANTS)]
            rounds = [[one_round(trainer, seed) for trainer in trainers] for seed in range(args.rounds + 1)][1:]
        for number, (layers, reuse) in enumerate(VARIANTS):
            best = {phase: min(each[number][phase] for each in rounds) for phase in ("score", "update")}
            trunk = "none" if layers == "all" else "once" if reuse else "in every pass"
            print(f"| {dtype} | {layers} | {trunk} | {best['score']:.2f} | {best['update']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
