"""Supervised fine-tuning with trl's `SFTTrainer`, ready to be the start and the reference of PPO."""

from pathlib import Path
from typing import Any

from hf_rlhf.hub.push import push_folder
from hf_rlhf.models.adapters import is_peft_model
from hf_rlhf.models.load import public_name, require_fitting_tokenizer
from hf_rlhf.recipes.arguments import (
    DataArguments,
    ModelArguments,
    SFTTrainingArguments,
    peft_config,
)
from hf_rlhf.recipes.common import (
    RunResult,
    announce,
    base_and_adapter,
    load_start,
    make_room_for_template,
    open_hub,
    output_folder,
    own_vocabulary,
    release,
    run_begun,
    start_settings,
    tokenizer_of,
    without_template,
)
from hf_rlhf.recipes.data import sft_sets
from hf_rlhf.records import write_settings
from hf_rlhf.reward_modeling.training import adapters_in_base_dtype, save_trained


def train_sft(script: DataArguments, training: SFTTrainingArguments, model: ModelArguments) -> RunResult:
    """Fine-tune on demonstrations and save the adapter (or full model), tokenizer and card to `training.output_dir`.

    Rows have `messages`, `prompt` and `completion`, or `text`, as for `trl.SFTTrainer`.

    Raises `InputError` for anything wrong in the flags or the data, before training starts.
    """
    with run_begun(script, training) as checkpoint:
        return _train(script, training, model, checkpoint)


def _train(
    script: DataArguments, training: SFTTrainingArguments, model: ModelArguments, checkpoint: str | None
) -> RunResult:
    from hf_rlhf.reward_modeling.trainers import SFTTrainer

    trust = training.trust_remote_code
    tokenizer = tokenizer_of(model, training.chat_template_path, trust_remote_code=trust)
    train_set, eval_set, report, _ = sft_sets(script, training, tokenizer)
    policy = load_start(model, trainable=True, trust_remote_code=trust)
    config = None if is_peft_model(policy) else peft_config(model)
    if training.chat_template_path is not None:
        make_room_for_template(policy, tokenizer, model, config, trust_remote_code=trust)
    require_fitting_tokenizer(policy, tokenizer)
    open_hub(training)
    trainer: Any = SFTTrainer(
        model=policy,
        args=without_template(training),
        train_dataset=train_set,
        eval_dataset=eval_set,
        processing_class=tokenizer,
        peft_config=config,
    )
    announce(report, training)
    with adapters_in_base_dtype(trainer.model):
        trainer.train(resume_from_checkpoint=checkpoint)
        metrics = trainer.evaluate() if eval_set is not None else {}
    folder = output_folder(training)
    save_trained(trainer, folder)
    if trainer.is_world_process_zero():
        write_settings(folder, training, model, script)
        _write_card(folder, script, training, model, metrics, own_vocabulary(trainer.model))
        if training.push_to_hub:
            push_folder(folder, training.hub_model_id, private=training.hub_private_repo)
    release(trainer)
    return RunResult(folder, metrics)


def _write_card(
    folder: Path, script: DataArguments, training, model: ModelArguments, metrics, vocabulary: int | None
) -> None:
    from hf_rlhf.hub.model_card import hub_names, sft_card

    names = "learning_rate num_train_epochs per_device_train_batch_size gradient_accumulation_steps max_length seed"
    card = sft_card(
        model_id=training.hub_model_id or folder.name,
        base_model=public_name(base_and_adapter(model)[0]),
        results={"held-out loss": f"{metrics['eval_loss']:.3f}"} if "eval_loss" in metrics else {},
        settings={name: getattr(training, name) for name in names.split()} | start_settings(model),
        datasets=hub_names(script.dataset_name),
        adapter=model.use_peft,
        vocabulary=vocabulary,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
