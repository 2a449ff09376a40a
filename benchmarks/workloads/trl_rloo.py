"""The workload by `trl.RLOOTrainer` of the trl that hf_rlhf stands on: what TRL offers in PPO's place today.

Equal to PPO's work: model, LoRA, reward model, completions and their lengths, updates of an iteration, a reference. Not
equal: RLOO has no critic, so it learns and scores no values; its baseline is the other completion of the same prompt,
so there are half as many prompts; its ratio is that of whole completions.
"""

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import RLOOConfig, RLOOTrainer
from work import Stopwatch, Work, report

COMPLETIONS_OF_A_PROMPT = 2


class Iterations(TrainerCallback):
    """A callback that tells the stopwatch when an iteration ends."""

    def __init__(self, stopwatch: Stopwatch, updates: int):
        self.stopwatch = stopwatch
        self.updates = updates

    def on_train_begin(self, args, state, control, **kwargs):
        self.stopwatch.begin()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.updates == 0:
            self.stopwatch.end_iteration()


def time_phases(stopwatch: Stopwatch) -> None:
    """Time the phases; a pass without gradients is of the sampling policy or of the reference."""
    passes = RLOOTrainer._get_per_token_logps_and_entropies
    scoring = stopwatch.wrap("score", passes)
    RLOOTrainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (
        passes if torch.is_grad_enabled() else scoring
    )(*args, **kwargs)
    RLOOTrainer._calculate_rewards = stopwatch.wrap("score", RLOOTrainer._calculate_rewards)
    RLOOTrainer._generate = stopwatch.wrap("generate", RLOOTrainer._generate)


def main() -> None:
    work = Work.from_command_line()
    dtype = getattr(torch, work.dtype)
    tokenizer = AutoTokenizer.from_pretrained(work.model, padding_side="left")
    texts = work.prompts(work.rollout_batch_size * work.iterations)[::COMPLETIONS_OF_A_PROMPT]
    updates = work.num_ppo_epochs * work.num_mini_batches
    stopwatch = Stopwatch()
    time_phases(stopwatch)
    trainer = RLOOTrainer(
        model=AutoModelForCausalLM.from_pretrained(work.model, dtype=dtype),
        reward_funcs=AutoModelForSequenceClassification.from_pretrained(work.reward_model, num_labels=1, dtype=dtype),
        args=RLOOConfig(
            output_dir=work.output_dir,
            per_device_train_batch_size=work.rollout_batch_size // work.num_mini_batches,
            gradient_accumulation_steps=1,
            steps_per_generation=work.num_mini_batches,
            num_iterations=work.num_ppo_epochs,
            num_generations=COMPLETIONS_OF_A_PROMPT,
            max_steps=updates * work.iterations,
            max_completion_length=work.completion_length,
            generation_kwargs={"min_new_tokens": work.completion_length},
            temperature=0.7,
            beta=0.05,
            learning_rate=1e-5,
            save_strategy="no",
            report_to="none",
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
        processing_class=tokenizer,
        reward_processing_classes=AutoTokenizer.from_pretrained(work.reward_model),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **work.lora_arguments),
        callbacks=[Iterations(stopwatch, updates)],
    )
    trainer.train()
    report(stopwatch)


if __name__ == "__main__":
    main()
