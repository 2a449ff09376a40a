"""Supervised fine-tuning with trl's `SFTTrainer`, ready to be the start and the reference of PPO."""

from typing import Any

from hf_rlhf.data.prompts import require_rows
from hf_rlhf.errors import InputError
from hf_rlhf.hub.push import push_folder
from hf_rlhf.models.adapters import is_peft_model
from hf_rlhf.recipes.arguments import (
    DataArguments,
    ModelArguments,
    SFTTrainingArguments,
    peft_config,
)
from hf_rlhf.recipes.common import (
    RunResult,
    load_model_and_tokenizer,
    load_split,
    output_folder,
    release,
    run_begun,
    wants_evaluation,
)
from hf_rlhf.records import METRICS_FILE, write_settings
from hf_rlhf.reward_modeling.training import adapters_in_base_dtype, save_trained

_LAYOUTS = (("messages",), ("prompt", "completion"), ("text",))


def train_sft(script: DataArguments, training: SFTTrainingArguments, model: ModelArguments) -> RunResult:
    """Fine-tune on demonstrations and save the adapter (or full model) and tokenizer to `training.output_dir`.

    Rows have `messages`, `prompt` and `completion`, or `text`, as for `trl.SFTTrainer`.

    Raises `InputError` for anything wrong in the flags or the data, before training starts.
    """
    with run_begun(script, training, METRICS_FILE) as checkpoint:
        return _train(script, training, model, checkpoint)


def _train(
    script: DataArguments, training: SFTTrainingArguments, model: ModelArguments, checkpoint: str | None
) -> RunResult:
    from hf_rlhf.reward_modeling.trainers import SFTTrainer

    train_set = _checked(*load_split(script))
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    require_rows(train_set, batch, source=str(script.dataset_name), why="one optimizer update")
    eval_set = _checked(*load_split(script, evaluation=True)) if wants_evaluation(script, training) else None
    policy, tokenizer = load_model_and_tokenizer(model, trainable=True)
    trainer: Any = SFTTrainer(
        model=policy,
        args=training,
        train_dataset=train_set,
        eval_dataset=eval_set,
        processing_class=tokenizer,
        peft_config=None if is_peft_model(policy) else peft_config(model),
    )
    with adapters_in_base_dtype(trainer.model):
        trainer.train(resume_from_checkpoint=checkpoint)
        metrics = trainer.evaluate() if eval_set is not None else {}
    folder = output_folder(training)
    save_trained(trainer, folder)
    if trainer.is_world_process_zero():
        write_settings(folder, training, model, script)
        if training.push_to_hub:
            push_folder(folder, training.hub_model_id, private=training.hub_private_repo, token=training.hub_token)
    release(trainer)
    return RunResult(folder, metrics)


def _checked(dataset, source: str):
    """Raise `InputError` unless the rows have one of SFT's layouts, with nothing missing."""
    columns = next((layout for layout in _LAYOUTS if set(layout) <= set(dataset.column_names)), None)
    if columns is None:
        raise InputError(
            f"{source}: columns {dataset.column_names} are none of SFT's layouts: messages; prompt and completion; text"
        )
    for column in columns:
        if empty := [row for row, value in enumerate(dataset[column]) if not value]:
            raise InputError(f"{source}: {column} is missing or empty in {len(empty)} rows, the first are {empty[:5]}")
    return dataset
