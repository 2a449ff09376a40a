"""Making, training and saving with `trl.RewardTrainer`: LoRA keeps its score head, and plain PEFT loads the result."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from hf_rlhf.errors import InputError, refusals_of_libraries
from hf_rlhf.models.adapted import head_name
from hf_rlhf.models.adapters import compute_in_base_dtype, is_peft_model, without_input_casting
from hf_rlhf.models.lora_targets import require_known_layers
from hf_rlhf.models.positions import table_positions
from hf_rlhf.ops.preference import BRADLEY_TERRY
from hf_rlhf.progress import use_compact_progress
from hf_rlhf.types import Model

MERGED_FOLDER = "merged"


def make_reward_trainer(
    classifier: Model,
    tokenizer,
    args,
    train_dataset,
    eval_dataset=None,
    peft_config=None,
    *,
    loss: str = BRADLEY_TERRY,
    callbacks=None,
):
    """Make a `RewardTrainer` of trl that can be killed and resumed.

    A LoRA config becomes one for sequence classification that trains and saves the head.

    Args:
        classifier: a sequence classifier with `num_labels=1`, in fp32 if every weight is trained; or a `PeftModel` of
            one.
        tokenizer: its tokenizer; pad and end token should differ.
        args: `trl.RewardConfig`.
        train_dataset: preferences in TRL's format; for a loss of `RATING_LOSSES`, rows with a `prompt`, its
            `completions` and their `ratings`.
        eval_dataset: the same.
        peft_config: a LoRA config of any task type; None for a `PeftModel`, or to train every weight.
        loss: `bradley_terry`, trl's, or a name in `RATING_LOSSES`.
        callbacks: as `Trainer` takes them.
    """
    from hf_rlhf.training.rating_trainer import RatingTrainer
    from hf_rlhf.training.trl_trainers import RewardTrainer

    if peft_config is not None:
        peft_config.task_type = "SEQ_CLS"
        peft_config.modules_to_save = sorted({*(peft_config.modules_to_save or ()), head_name(classifier)})
        require_known_layers(classifier, peft_config)
    with refusals_of_libraries(args):
        make = RewardTrainer if loss == BRADLEY_TERRY else partial(RatingTrainer, loss=loss)
        trainer = make(
            model=classifier,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            peft_config=peft_config,
            callbacks=callbacks,
        )
    use_compact_progress(trainer, (("loss", "loss", 3), ("accuracy", "accuracy", 2), ("margin", "margin", 2)))
    return trainer


def require_positions(trainer) -> None:
    """Raise `InputError` for rows of a trainer of trl that are longer than the model's table of positions."""
    limit = table_positions(trainer.model)
    if limit is None:
        return
    for role, dataset in (("training", trainer.train_dataset), ("evaluation", trainer.eval_dataset)):
        if dataset is None:
            continue
        names = [name for name in ("input_ids", "chosen_ids", "rejected_ids") if name in dataset.column_names]
        lengths = [len(ids) for name in names for ids in dataset[name]]
        if "completions_ids" in dataset.column_names:
            lengths += [len(ids) for group in dataset["completions_ids"] for ids in group]
        longest = max(lengths, default=0)
        if longest > limit:
            raise InputError(
                f"max_length={trainer.args.max_length} is invalid: a row of the {role} set has {longest} tokens, and"
                f" the model has positions for {limit}. Set max_length to {limit} or less"
            )


@contextmanager
def adapters_in_base_dtype(model: Model) -> Iterator[None]:
    """Keep PEFT from casting activations to fp32 at every adapter, as autocast casts the small matrices instead.

    Autocast keeps what it has cast until its outermost block ends, and this block holds a whole training: without the
    hook, every pass would use the weights of the first.
    """
    forget = model.register_forward_pre_hook(lambda *_: torch.clear_autocast_cache())
    try:
        with without_input_casting(model), compute_in_base_dtype(model):
            yield
    finally:
        forget.remove()


def save_trained(trainer, folder: str | os.PathLike) -> None:
    """Write what a trainer trained, and its tokenizer, to `folder`, and push nothing; every rank takes part."""
    trainer.save_model(str(folder), _internal_call=True)


def save_merged(model: Model, tokenizer, folder: str | os.PathLike) -> Path | None:
    """Merge the adapter into `model` and write a plain classifier to `folder/merged`; None when there is no adapter.

    `model` cannot be trained further afterwards.
    """
    if not is_peft_model(model):
        return None
    target = Path(folder) / MERGED_FOLDER
    merged = model.merge_and_unload()
    merged.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target
