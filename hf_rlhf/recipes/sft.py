"""Supervised fine-tuning with trl's `SFTTrainer`, ready to be the start and the reference of PPO."""

from typing import Any

from hf_rlhf.hub.push import push_folder
from hf_rlhf.models.adapters import is_peft_model
from hf_rlhf.models.load import require_fitting_tokenizer
from hf_rlhf.recipes.arguments import (
    DataArguments,
    ModelArguments,
    SFTTrainingArguments,
    peft_config,
)
from hf_rlhf.recipes.common import (
    RunResult,
    announce,
    load_start,
    open_hub,
    output_folder,
    release,
    run_begun,
    tokenizer_of,
)
from hf_rlhf.recipes.data import sft_sets
from hf_rlhf.records import write_settings
from hf_rlhf.reward_modeling.training import adapters_in_base_dtype, save_trained


def train_sft(script: DataArguments, training: SFTTrainingArguments, model: ModelArguments) -> RunResult:
    """Fine-tune on demonstrations and save the adapter (or full model) and tokenizer to `training.output_dir`.

    Rows have `messages`, `prompt` and `completion`, or `text`, as for `trl.SFTTrainer`.

    Raises `InputError` for anything wrong in the flags or the data, before training starts.
    """
    with run_begun(script, training) as checkpoint:
        return _train(script, training, model, checkpoint)


def _train(
    script: DataArguments, training: SFTTrainingArguments, model: ModelArguments, checkpoint: str | None
) -> RunResult:
    from hf_rlhf.reward_modeling.trainers import SFTTrainer

    open_hub(training)
    trust = training.trust_remote_code
    tokenizer = tokenizer_of(model, training.chat_template_path, trust_remote_code=trust)
    train_set, eval_set, report, _ = sft_sets(script, training, tokenizer)
    policy = load_start(model, trainable=True, trust_remote_code=trust)
    require_fitting_tokenizer(policy, tokenizer)
    trainer: Any = SFTTrainer(
        model=policy,
        args=training,
        train_dataset=train_set,
        eval_dataset=eval_set,
        processing_class=tokenizer,
        peft_config=None if is_peft_model(policy) else peft_config(model),
    )
    announce(report, training)
    with adapters_in_base_dtype(trainer.model):
        trainer.train(resume_from_checkpoint=checkpoint)
        metrics = trainer.evaluate() if eval_set is not None else {}
    folder = output_folder(training)
    save_trained(trainer, folder)
    if trainer.is_world_process_zero():
        write_settings(folder, training, model, script)
        if training.push_to_hub:
            push_folder(folder, training.hub_model_id, private=training.hub_private_repo)
    release(trainer)
    return RunResult(folder, metrics)
