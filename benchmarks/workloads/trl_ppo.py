"""The workload by `trl.experimental.ppo.PPOTrainer` of trl 1.12.0, the last release that has one."""

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
from work import Stopwatch, Work, report


class Iterations(TrainerCallback):
    """A callback that tells the stopwatch when an iteration ends."""

    def __init__(self, stopwatch: Stopwatch):
        self.stopwatch = stopwatch

    def on_train_begin(self, args, state, control, **kwargs):
        self.stopwatch.begin()

    def on_step_end(self, args, state, control, **kwargs):
        self.stopwatch.end_iteration()


def main() -> None:
    work = Work.from_command_line()
    dtype = getattr(torch, work.dtype)
    tokenizer = AutoTokenizer.from_pretrained(work.model, padding_side="left")
    texts = work.prompts(work.rollout_batch_size * work.iterations)
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in texts]
    assert all(16 <= len(row["input_ids"]) <= 32 for row in rows)
    stopwatch = Stopwatch()
    ppo_trainer.batch_generation = stopwatch.wrap("generate", ppo_trainer.batch_generation)
    ppo_trainer.get_reward = stopwatch.wrap("score", ppo_trainer.get_reward)

    reward_model, value_model = (
        AutoModelForSequenceClassification.from_pretrained(work.reward_model, num_labels=1, dtype=dtype)
        for _ in range(2)
    )
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=work.output_dir,
            per_device_train_batch_size=work.rollout_batch_size,  # micro-batches are minibatches, all of them updates
            gradient_accumulation_steps=1,
            num_mini_batches=work.num_mini_batches,
            num_ppo_epochs=work.num_ppo_epochs,
            total_episodes=work.rollout_batch_size * work.iterations,
            response_length=work.completion_length,
            learning_rate=1e-5,
            save_strategy="no",
            report_to="none",
            num_sample_generations=0,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
        ),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(work.model, dtype=dtype),
        ref_model=None,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **work.lora_arguments),
        callbacks=[Iterations(stopwatch)],
    )
    outer = ppo_trainer.forward

    def forward(model, *args):
        """Time a forward pass; one without gradients is the reference's."""
        return outer(model, *args) if torch.is_grad_enabled() else stopwatch.wrap("score", outer)(model, *args)

    ppo_trainer.forward = forward
    trainer.train()
    report(stopwatch)


if __name__ == "__main__":
    main()
