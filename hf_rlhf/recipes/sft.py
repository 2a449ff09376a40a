"""Supervised fine-tuning with trl's `SFTTrainer`, ready to be the start and the reference of PPO."""

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_rlhf.data.prepared import rows_of
from hf_rlhf.errors import refusals_of_libraries
from hf_rlhf.hub.push import push_folder
from hf_rlhf.models.adapters import base_of, is_peft_model
from hf_rlhf.models.load import public_name, require_fitting_tokenizer
from hf_rlhf.models.lora_targets import require_known_layers
from hf_rlhf.recipes.arguments import (
    DataArguments,
    ModelArguments,
    SFTTrainingArguments,
    peft_config,
)
from hf_rlhf.recipes.common import (
    RunResult,
    announce,
    announce_base,
    base_and_adapter,
    keep_autocast,
    load_start,
    make_room_for_template,
    open_hub,
    output_folder,
    own_vocabulary,
    release,
    run_begun,
    set_special_tokens,
    start_settings,
    tokenizer_of,
    without_template,
)
from hf_rlhf.recipes.data import sft_sets
from hf_rlhf.records import write_settings
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.rollout.stops import configured_end_ids, stop_token_ids, unknown_end_of_turn
from hf_rlhf.training.early_stopping import stopping_callbacks
from hf_rlhf.training.trl_setup import adapters_in_base_dtype, require_positions, save_trained
from hf_rlhf.types import Model

logger = logging.getLogger(__name__)


def train_sft(script: DataArguments, training: SFTTrainingArguments, model: ModelArguments) -> RunResult:
    """Fine-tune on demonstrations and save the adapter (or full model), tokenizer and card to `training.output_dir`.

    Rows have `messages`, `prompt` and `completion`, or `text`, as for `trl.SFTTrainer`.

    Raises `InputError` for anything wrong in the flags or the data, before training starts.
    """
    with run_begun(script, training) as checkpoint:
        training = keep_autocast(training, checkpoint)
        return _train(script, training, model.on(training.device, checkpoint), checkpoint)


def _train(
    script: DataArguments, training: SFTTrainingArguments, model: ModelArguments, checkpoint: str | None
) -> RunResult:
    from hf_rlhf.training.trl_trainers import SFTTrainer

    trust = training.trust_remote_code
    tokenizer = tokenizer_of(model, training.chat_template_path, trust_remote_code=trust)
    set_special_tokens(tokenizer, training)
    sets = sft_sets(script, training, tokenizer)
    train_set, eval_set = sets.train.dataset, rows_of(sets.evaluation)
    policy = load_start(model, trainable=True, trust_remote_code=trust)
    config = None if is_peft_model(policy) else peft_config(model, policy)
    if training.chat_template_path is not None:
        make_room_for_template(policy, tokenizer, model, config, trust_remote_code=trust)
    require_fitting_tokenizer(policy, tokenizer)
    configured = configured_end_ids(base_of(policy))
    training = _with_end_of_turn(training, policy, tokenizer, train_set[0])
    open_hub(training)
    require_known_layers(policy, config)
    with refusals_of_libraries(training, model):
        trainer: Any = SFTTrainer(
            model=policy,
            args=without_template(training),
            train_dataset=train_set,
            eval_dataset=eval_set,
            processing_class=tokenizer,
            peft_config=config,
            callbacks=stopping_callbacks(training),
        )
    require_positions(trainer)
    if unknown_end_of_turn(base_of(policy), tokenizer, Sampling(), train_set[0]) is None:
        _warn_of_endless_answers(trainer, stop_token_ids(base_of(policy), tokenizer, Sampling()), tokenizer)
    announce(sets.report, training)
    announce_base(trainer.model, training)
    with adapters_in_base_dtype(trainer.model):
        trainer.train(resume_from_checkpoint=checkpoint)
        metrics = trainer.evaluate() if eval_set is not None else {}
    folder = output_folder(training)
    save_trained(trainer, folder)
    if trainer.is_world_process_zero():
        write_settings(folder, training, model, script)
        ends = stop_token_ids(base_of(policy), tokenizer, Sampling())
        needs = {"end_ids": ends if set(ends) - set(configured) else None, "vocabulary": own_vocabulary(trainer.model)}
        start = start_settings(model, trainer.computation)
        _write_card(folder, script, training, model, metrics, needs, start)
        if training.push_to_hub:
            push_folder(folder, training.hub_model_id, private=training.hub_private_repo)
    release(trainer)
    return RunResult(folder, metrics)


def _with_end_of_turn(
    training: SFTTrainingArguments, policy: Model, tokenizer, row: Mapping[str, Any]
) -> SFTTrainingArguments:
    """Return the settings with the token that closes an answer in the chat template as `eos_token`.

    They change only if nothing else knows that token.

    So trl writes it into the configs, and the saved model stops where its answers end.
    """
    from trl import is_conversational

    given = tokenizer.get_vocab().get(training.eos_token)
    known = Sampling(stop_token_ids=() if given is None else (given,))
    end = unknown_end_of_turn(base_of(policy), tokenizer, known, row) if is_conversational(dict(row)) else None
    if end is None:
        return training
    found = f"The chat template closes an answer with {end.text!r}, at which the model does not stop"
    if training.eos_token is not None or not end.tokens or not end.trained:
        logger.warning(
            "%s: its answers would run on. Set eos_token to a token that the template writes behind an answer, or"
            " chat_template_path to a template with one",
            found,
        )
        return training
    token = tokenizer.convert_ids_to_tokens(end.tokens[0])
    logger.warning(
        "%s: it is saved as the end token, as if eos_token=%s were set. Plain `generate` on an adapter reads the end"
        " tokens of the base: give it eos_token_id=tokenizer.eos_token_id",
        found,
        token,
    )
    training = copy.copy(training)
    training.eos_token = token
    return training


def _warn_of_endless_answers(trainer: Any, stops: Sequence[int], tokenizer) -> None:
    """Warn where the first row trains none of the tokens that end an answer."""
    row = trainer.train_dataset[0]
    if set(row.get("labels") or row["input_ids"]).isdisjoint(stops):
        marks = ", between its {% generation %} and {% endgeneration %}" if trainer.args.assistant_only_loss else ""
        logger.warning(
            "The answers hold no token that is trained and at which the model stops (%s): it does not learn to stop,"
            " and its answers run on. Set chat_template_path to a template that writes one of them behind an answer%s",
            ", ".join(tokenizer.convert_ids_to_tokens(stops)) or "none is known",
            marks,
        )


def _write_card(
    folder: Path,
    script: DataArguments,
    training,
    model: ModelArguments,
    metrics,
    needs: Mapping[str, Any],
    start: dict[str, Any],
) -> None:
    from hf_rlhf.hub.model_card import hub_names, sft_card

    names = "learning_rate num_train_epochs per_device_train_batch_size gradient_accumulation_steps max_length seed"
    card = sft_card(
        model_id=training.hub_model_id or folder.name,
        base_model=public_name(base_and_adapter(model)[0]),
        results={"held-out loss": f"{metrics['eval_loss']:.3f}"} if "eval_loss" in metrics else {},
        settings={name: getattr(training, name) for name in names.split()} | start,
        datasets=hub_names(*script.dataset_names()),
        adapter=model.use_peft,
        **needs,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
