"""One run of `time_to_reward.py` by `trl.experimental.ppo.PPOTrainer` of trl 1.12.0, the last release that has one."""

import importlib.metadata
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from task import Recorder, Task, TimeIsUp
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
    set_seed,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

VERSION = "1.12.0"
ITERATIONS = 10**6  # more than the time allows


class Iterations(TrainerCallback):
    """A callback that tells the recorder when an iteration ends."""

    def __init__(self) -> None:
        self.recorder: Recorder | None = None

    def on_step_end(self, args, state, control, **kwargs):
        if self.recorder and self.recorder.end_iteration():
            raise TimeIsUp


def close_cut_completions(reward_model, end_token_id: int) -> None:
    """Add an end token to a completion that was cut off before the reward model reads it.

    The reward model was trained that way, and hf_rlhf does the same.
    """
    outer = ppo_trainer.get_reward

    def get_reward(model, query_responses, pad_token_id, context_length):
        if model is reward_model:
            last = query_responses[:, -1:]
            open_ended = (last != pad_token_id) & (last != end_token_id)
            end = torch.full_like(last, pad_token_id).masked_fill(open_ended, end_token_id)
            query_responses = torch.cat([query_responses, end], dim=1)
        return outer(model, query_responses, pad_token_id, context_length)

    ppo_trainer.get_reward = get_reward


def main() -> None:
    if (version := importlib.metadata.version("trl")) != VERSION:
        raise SystemExit(f"trl {version} is here, and trl {VERSION} is compared; check --peer_python and --peer_path")
    task = Task.from_command_line()
    # Before LoRA's random start. NumPy orders TRL's minibatches, and TRL never seeds it.
    set_seed(task.seed)
    setting = task.setting
    dtype = getattr(torch, task.dtype)
    tokenizer = AutoTokenizer.from_pretrained(task.tokenizer, padding_side="left")
    policy = get_peft_model(
        AutoModelForCausalLM.from_pretrained(task.model, dtype=dtype), LoraConfig(task_type="CAUSAL_LM", **task.lora)
    )
    reward_model, value_model = (
        AutoModelForSequenceClassification.from_pretrained(task.reward_model, num_labels=1, dtype=kind)
        for kind in (dtype, getattr(torch, setting.value_dtype or task.dtype))
    )
    close_cut_completions(reward_model, tokenizer.eos_token_id)
    groups = [
        {"params": [weight for weight in policy.parameters() if weight.requires_grad]},
        {"params": list(value_model.parameters()), "lr": setting.value_learning_rate or setting.learning_rate},
    ]
    iterations = Iterations()
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(Path(task.output_dir) / "trainer"),
            per_device_train_batch_size=task.rollout_batch_size,  # micro-batches are minibatches, all of them updates
            gradient_accumulation_steps=1,
            num_mini_batches=setting.num_mini_batches,
            num_ppo_epochs=setting.num_ppo_epochs,
            total_episodes=task.rollout_batch_size * ITERATIONS,
            learning_rate=setting.learning_rate,
            lr_scheduler_type="constant",
            kl_coef=task.kl_coef,
            response_length=task.max_completion_length,
            temperature=task.temperature,
            stop_token="eos",
            save_strategy="no",
            report_to="none",
            num_sample_generations=0,
            bf16=False,
            gradient_checkpointing=False,
            local_rollout_forward_batch_size=task.rollout_batch_size,
            seed=task.seed,
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=Dataset.from_list([{"input_ids": tokenizer(text)["input_ids"]} for text in task.texts()]),
        optimizers=(torch.optim.AdamW(groups, lr=setting.learning_rate, weight_decay=0.0), None),
        callbacks=[iterations],
    )
    recorder = iterations.recorder = Recorder(task, policy.save_pretrained)
    with recorder.training():
        trainer.train()
    recorder.write(**{name: importlib.metadata.version(name) for name in ("trl", "torch", "transformers", "peft")})


if __name__ == "__main__":
    main()
