"""The workload by `hf_rlhf.PPOTrainer`."""

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from work import Stopwatch, Work, free_folder, report

from hf_rlhf import PPOConfig, PPOTrainer
from hf_rlhf.models.load import load_causal_lm, load_tokenizer


class Iterations(TrainerCallback):
    """A callback that tells the stopwatch when an iteration ends."""

    def __init__(self, stopwatch: Stopwatch):
        self.stopwatch = stopwatch

    def on_train_begin(self, args, state, control, **kwargs):
        self.stopwatch.begin()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % args.updates_per_iteration == 0:
            self.stopwatch.end_iteration()


def main() -> None:
    work = Work.from_command_line()
    folder = free_folder(work)
    tokenizer = load_tokenizer(work.model)
    tokenizer.eos_token = None  # nothing ends a completion but its length
    texts = work.prompts(work.rollout_batch_size * work.iterations)
    assert all(16 <= len(tokenizer(text)["input_ids"]) <= 32 for text in texts)
    stopwatch = Stopwatch()

    for stage, phase in (("sample", "generate"), ("compute_rewards", "score"), ("forward_pass", "score")):
        setattr(PPOTrainer, stage, stopwatch.wrap(phase, getattr(PPOTrainer, stage)))
    model = load_causal_lm(work.model, dtype=work.dtype)
    model.generation_config.eos_token_id = None
    trainer = PPOTrainer(
        model,
        work.reward_model,
        PPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=work.rollout_batch_size // work.num_mini_batches,
            num_mini_batches=work.num_mini_batches,
            num_ppo_epochs=work.num_ppo_epochs,
            total_episodes=work.rollout_batch_size * work.iterations,
            max_completion_length=work.completion_length,
            temperature=0.7,
            learning_rate=1e-5,
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
        ),
        Dataset.from_list([{"prompt": text} for text in texts]),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **work.lora_arguments),
        callbacks=[Iterations(stopwatch)],
    )
    trainer.train()
    report(stopwatch)


if __name__ == "__main__":
    main()
