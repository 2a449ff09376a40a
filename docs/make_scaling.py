"""Write the tables of docs/reference/memory.md: memory and time of 1B, 8B and 70B policies by `hf_rlhf.planning`.

python docs/make_scaling.py        # a minute; needs no weights and no Hub
"""

import copy
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import LlamaConfig

from hf_rlhf.planning.layout import Layout
from hf_rlhf.planning.memory import MemoryModel, MemoryPlan, look_at, plan_memory
from hf_rlhf.planning.work import IterationSize, Machine, roofline
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.recipes.plan import USUAL_FRACTION

PAGE = Path(__file__).parent / "reference" / "memory.md"
MARK = "<!-- below: written by docs/make_scaling.py -->"
CONTEXT = 1e9  # bytes of a CUDA context and its libraries' work space
H100 = Machine(flops=989e12, bandwidth=3.35e12)  # bf16 without sparsity, HBM3: NVIDIA's data sheet of the SXM5
SIZES = {
    "1B (Llama 3.2 1B)": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "8B (Llama 3.1 8B)": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "70B (Llama 3.1 70B)": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}


def known_of(shape: dict, args: PPOConfig, *, lora: bool = True) -> MemoryModel:
    """Return what the plan needs of a model of these sizes: LoRA r16 on all linear layers, or all weights in fp32."""
    config = LlamaConfig(vocab_size=128256, max_position_embeddings=8192, **shape)
    adapter = LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear") if lora else None
    known = look_at(config, args, dtype="bfloat16", peft_config=adapter)
    return replace(known, libraries=CONTEXT, reward=4.0 * known.trained if lora else 0.0)


LAYOUTS = {
    "DDP": (Layout("ddp", 8), True),
    "ZeRO-2": (Layout("zero2", 8), True),
    "FSDP2": (Layout("fsdp2", 8), True),
    "FSDP2, block by block": (Layout("fsdp2", 8), False),
}


def sharded_table() -> list[str]:
    """Return the peaks on each of eight devices, by strategy."""
    rows = [f"| policy | trained | {' | '.join(LAYOUTS)} |", "|---|---" + "|---" * len(LAYOUTS) + "|"]
    for name, shape in SIZES.items():
        for trained, lora, micro in (("LoRA", True, 8), ("all weights", False, 1)):
            peaks = []
            for layout, gather in LAYOUTS.values():
                flags = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": 32 // micro}
                args = settings(
                    gradient_checkpointing=True, gather_for_rollout=gather, generation_batch_size=16, **flags
                )
                peaks.append(peak_plan(known_of(shape, args, lora=lora), args, layout).peak / 1e9)
            rows.append(f"| {name} | {trained} | " + " | ".join(f"{peak:,.1f}" for peak in peaks) + " |")
    return rows


class OnGPU(PPOConfig):
    """Settings of a run on a GPU, on a machine that has none."""

    @property
    def device(self) -> torch.device:
        """CUDA, whether this machine has it or not."""
        return torch.device("cuda")


def peak_plan(known: MemoryModel, args: PPOConfig, layout: Layout | None = None) -> MemoryPlan:
    """Plan for a GPU, with what was found out about the models on the CPU."""
    args = copy.copy(args)
    args.__class__ = OnGPU
    return plan_memory(known, args, layout)


def settings(**flags) -> PPOConfig:
    """Return settings: 8 sequences of 512 + 512 tokens in a micro-batch, 64 sampled at once on each device."""
    defaults = {
        "output_dir": "unused",
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 4,
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
        "max_prompt_length": 512,
        "max_completion_length": 512,
        "rollout_forward_batch_size": 16,
        "report_to": "none",
    }
    return PPOConfig(**{**defaults, **flags})


def tables() -> str:
    """Return memory and time as Markdown."""
    memory = [
        "| policy | base | fixed | + sampling | + forward pass | + update | + update, checkpointing | peak, checkpointing |",
        "|---|---|---|---|---|---|---|---|",
    ]
    seconds = [
        "| policy | sampling | forward pass | update | iteration | tokens a second |",
        "|---|---|---|---|---|---|",
    ]
    plain, checkpointing = settings(), settings(gradient_checkpointing=True)
    for name, shape in SIZES.items():
        known = known_of(shape, plain)
        for base, model in (("bf16", known), ("4-bit", replace(known, quantized=True))):
            plan, lean = peak_plan(model, plain), peak_plan(model, checkpointing)
            cells = [sum(plan.fixed.values()), *plan.phases.values(), lean.phases["update"], lean.peak]
            memory.append(f"| {name} | {base} | " + " | ".join(f"{cell / 1e9:,.1f}" for cell in cells) + " |")
        size = IterationSize(plain.rollout_batch_size, 512, 512, plain.num_ppo_epochs)
        ideal = roofline(known.shape, size, H100, 2)
        usual = [value / USUAL_FRACTION for value in ideal.values()]
        rate = size.completion_tokens / sum(usual)
        seconds.append(
            f"| {name} | " + " | ".join(f"{cell:,.0f} s" for cell in (*usual, sum(usual))) + f" | {rate:,.0f} |"
        )
    return "\n".join([*memory, "", *seconds, "", *sharded_table()])


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8").split(MARK)[0]
    PAGE.write_text(f"{page}{MARK}\n\n{tables()}\n", encoding="utf-8")
