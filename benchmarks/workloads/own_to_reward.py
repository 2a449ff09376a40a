"""One run of `time_to_reward.py` by `hf_rlhf.PPOTrainer`."""

import importlib.metadata
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from task import Recorder, Task
from transformers import TrainerCallback

from hf_rlhf import PPOConfig, PPOTrainer
from hf_rlhf.models.load import load_causal_lm, load_tokenizer

UPDATES = 10**6  # more than the time allows


class Iterations(TrainerCallback):
    """A callback that tells the recorder when an iteration ends, and stops the trainer when the time is up."""

    def __init__(self, recorder: Recorder):
        self.recorder = recorder

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % args.updates_per_iteration == 0 and self.recorder.end_iteration():
            control.should_training_stop = True


def main() -> None:
    task = Task.from_command_line()
    setting = task.setting
    own_critic = {"critic": "adapter", "critic_path": task.reward_model} if setting.critic == "adapter" else {}
    policy = load_causal_lm(task.model, dtype=task.dtype)
    trainer = PPOTrainer(
        policy,
        task.reward_model,
        PPOConfig(
            output_dir=str(Path(task.output_dir) / "trainer"),
            per_device_train_batch_size=task.rollout_batch_size // setting.num_mini_batches,
            num_mini_batches=setting.num_mini_batches,
            num_ppo_epochs=setting.num_ppo_epochs,
            max_steps=UPDATES * setting.num_ppo_epochs * setting.num_mini_batches,
            learning_rate=setting.learning_rate,
            critic_learning_rate=setting.value_learning_rate,
            lr_scheduler_type="constant",
            kl_coef=task.kl_coef,
            max_completion_length=task.max_completion_length,
            temperature=task.temperature,
            save_strategy="no",
            report_to="none",
            seed=task.seed,
            use_cpu=not torch.cuda.is_available(),
            **own_critic,
        ),
        Dataset.from_list([{"prompt": text} for text in task.texts()]),
        processing_class=load_tokenizer(task.tokenizer),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **task.lora),
    )
    recorder = Recorder(task, lambda folder: trainer.model.save_pretrained(folder))
    trainer.add_callback(Iterations(recorder))
    with recorder.training():
        trainer.train()
    recorder.write(**{name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")})


if __name__ == "__main__":
    main()
