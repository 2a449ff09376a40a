"""Train a reward model on preferences with trl's `RewardTrainer`, load it again, and say how good it is."""

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import set_seed

from hf_rlhf.data.prepared import rows_of
from hf_rlhf.data.rows import fingerprint
from hf_rlhf.errors import InputError
from hf_rlhf.evaluation.report_card.baselines import MAX_TRAIN_PAIRS, spread
from hf_rlhf.evaluation.report_card.card import ReportCard
from hf_rlhf.evaluation.report_card.guard import weights_of
from hf_rlhf.evaluation.reward_model import Pairs, RatedGroups, rated_accuracy, reward_accuracy
from hf_rlhf.evaluation.round_trip import CANDIDATES, Probe, check_plain, check_saved
from hf_rlhf.evaluation.threshold_report import find_threshold
from hf_rlhf.hub.push import push_folder
from hf_rlhf.models.adapted import load_reward_start
from hf_rlhf.models.adapters import base_of, compute_in_base_dtype, is_peft_model
from hf_rlhf.models.load import require_fitting_tokenizer
from hf_rlhf.ops.preference import BINARY
from hf_rlhf.progress import progress_of, say
from hf_rlhf.recipes.arguments import ModelArguments, RewardArguments, RewardTrainingArguments, peft_config
from hf_rlhf.recipes.common import (
    RunResult,
    announce,
    announce_base,
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
from hf_rlhf.recipes.data import Sets, margins_are_used, pairs_for_loss, reward_sets
from hf_rlhf.recipes.report_card import card_of_run
from hf_rlhf.recipes.reward_results import write_card, write_results
from hf_rlhf.records import write_settings
from hf_rlhf.rewards.learned import LearnedReward
from hf_rlhf.training.early_stopping import stopping_callbacks
from hf_rlhf.training.trl_setup import (
    MERGED_FOLDER,
    adapters_in_base_dtype,
    make_reward_trainer,
    require_positions,
    save_merged,
    save_trained,
)

logger = logging.getLogger(__name__)


def train_reward_model(script: RewardArguments, training: RewardTrainingArguments, model: ModelArguments) -> RunResult:
    """Train a reward model and save adapter, score head, tokenizer, evaluation and card to `training.output_dir`.

    With LoRA, `merged/` beside the adapter is a plain `AutoModelForSequenceClassification`. The saved model is loaded
    again and must give the rewards that it gave in memory, in each of its forms (`hf_rlhf.evaluation.round_trip`).

    Raises `InputError` for anything wrong in the flags or the data, before training starts.
    """
    if script.num_reward_models > 1:
        from hf_rlhf.recipes.reward_ensemble import train_reward_ensemble

        return train_reward_ensemble(script, training, model)
    with run_begun(script, training) as checkpoint:
        training = keep_autocast(training, checkpoint)
        model = model.on(training.device, checkpoint)
        parts = load_parts(script, training, model)
        open_hub(training)
        trainer = parts.trainer(script, training)
        announce(parts.sets.report, training)
        metrics = train_and_save(trainer, parts, script, training, model, checkpoint)
        release(trainer)
        return RunResult(output_folder(training), metrics)


class RewardParts(NamedTuple):
    """Start of a reward model's training: a classifier with its tokenizer, and the data."""

    classifier: Any
    tokenizer: Any
    config: Any  # of LoRA; None for a model that has an adapter, or trains every weight
    sets: Sets

    def trainer(self, script: RewardArguments, training: RewardTrainingArguments, rows: Any = None) -> Any:
        """Make the trainer on all training rows, or on these. Raises `InputError` for rows that do not fit."""
        rows = self.sets.train.dataset if rows is None else rows
        held_out = rows_of(self.sets.evaluation)
        if not script.rates:
            margins = margins_are_used(self.sets.train, script)
            rows, held_out = (pairs_for_loss(each, margins=margins) for each in (rows, held_out))
        trainer: Any = make_reward_trainer(
            self.classifier,
            self.tokenizer,
            without_template(training),
            rows,
            held_out,
            copy.deepcopy(self.config),  # PEFT adds to it
            loss=script.reward_loss,
            callbacks=stopping_callbacks(training),
        )
        _require_rows(trainer, trainer.train_dataset, len(rows), training)
        if held_out is not None:
            _require_rows(trainer, trainer.eval_dataset, len(held_out), training, "evaluation ")
        require_positions(trainer)
        return trainer


def load_parts(script: RewardArguments, training: RewardTrainingArguments, model: ModelArguments) -> RewardParts:
    """Check the data and load the model that training starts from. Raises `InputError`."""
    trust = training.trust_remote_code
    tokenizer = tokenizer_of(model, training.chat_template_path, trust_remote_code=trust)
    set_special_tokens(tokenizer, training)
    sets = reward_sets(script, training, tokenizer)
    set_seed(training.seed)  # before the score head's random start
    classifier = load_start(model, load_reward_start, trust_remote_code=trust)
    config = None if is_peft_model(classifier) else peft_config(model, classifier)
    if training.chat_template_path is not None:
        make_room_for_template(classifier, tokenizer, model, config, trust_remote_code=trust)
    require_fitting_tokenizer(classifier, tokenizer)
    return RewardParts(classifier, tokenizer, config, sets)


def train_and_save(
    trainer: Any,
    parts: RewardParts,
    script: RewardArguments,
    training: RewardTrainingArguments,
    model: ModelArguments,
    checkpoint: str | None,
    rows: Any = None,
    *,
    card: bool = True,
) -> dict[str, float]:
    """Train, save, check what was saved and evaluate it; return the numbers, on the first rank.

    `rows` are those of the trainer, by default all. Where it is evaluated on pairs or on groups that hold some, it gets
    a report `card`.
    """
    rows = parts.sets.train.dataset if rows is None else rows
    held_out = rows_of(parts.sets.evaluation)
    announce_base(trainer.model, training)
    with adapters_in_base_dtype(trainer.model):
        trainer.train(resume_from_checkpoint=checkpoint)
    folder, tokenizer = output_folder(training), parts.tokenizer
    with progress_of(2, "saving") as advance:
        save_trained(trainer, folder)
        advance(1)
        trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # without Trainer's autocast
        candidates = trainer.train_dataset.select(range(min(len(trainer.train_dataset), CANDIDATES)))
        probe = Probe.of(tokenizer, *_read(rows, candidates).texts)
        pad_id = tokenizer.pad_token_id or 0
        expected = probe.rewards(_OwnForward(trained), pad_id, training.device)  # by every rank: each may hold a shard
    metrics = {"train_rows": float(len(trainer.train_dataset))}
    if trainer.is_world_process_zero():
        write_settings(folder, training, model, script)

        def measure(reward: LearnedReward) -> tuple[dict[str, float], ReportCard | None]:
            if held_out is None:
                say("no accuracy and no report card: there is no evaluation set. eval_fraction=0.1 holds out one")
                return {}, None
            eval_set = _read(held_out, trainer.eval_dataset)
            if isinstance(eval_set, RatedGroups) and script.reward_loss == BINARY and card:
                return _label_results(folder, reward, eval_set, script), None
            is_rated = isinstance(eval_set, RatedGroups)
            measured = evaluate_reward(reward, eval_set, script) if is_rated or not card else {}
            if not card:
                return measured, None
            known = _read(rows, trainer.train_dataset.select(spread(len(trainer.train_dataset), MAX_TRAIN_PAIRS)))
            skipped = len(held_out) - len(trainer.eval_dataset)
            made = card_of_run(folder, reward, eval_set, known, script, skipped=skipped, limit=training.max_length)
            return (made.metrics() if made is not None else {}) | measured, made

        metrics |= _check_and_evaluate(folder, probe, expected, trained, trainer, measure, script, training, model)
        start = start_settings(model, trainer.computation)
        write_card(folder, script, training, model, metrics, own_vocabulary(trained), start)
        write_results(folder, metrics)  # last: it says that the model is whole
        if training.push_to_hub:
            push_folder(folder, training.hub_model_id, private=training.hub_private_repo)
    return metrics


def _check_and_evaluate(
    folder: Path,
    probe: Probe,
    expected: list[float],
    trained: Any,
    trainer: Any,
    measure: Callable[[LearnedReward], tuple[dict[str, float], ReportCard | None]],
    script,
    training,
    model,
) -> dict[str, float]:
    """Load what was saved in each of its forms, compare their rewards, and measure the accuracy; merge at the end.

    The report card is written last, with the digests of all forms.
    """
    trust = {"trust_remote_code": training.trust_remote_code}
    as_trained = model.load_kwargs() | {"dtype": base_of(trained).dtype} | trust
    with progress_of(1, "loading what was saved, and comparing its rewards"):
        saved = check_saved(folder, probe, expected, as_trained, training.device, casts=_fsdp_casts_weights(trainer))
    measured, card = measure(saved.reward)
    metrics, plain, rewards = saved.gaps | measured, folder, saved.rewards
    if is_peft_model(saved.model.model):
        plain = folder / MERGED_FOLDER if script.save_merged else None
    if plain is not None:
        with progress_of(2, "comparing the rewards of the plain classifier") as advance:
            if plain != folder:
                save_merged(saved.model.model, saved.reward.tokenizer, folder)
            del saved  # before another copy is loaded
            advance(1)
            metrics |= check_plain(plain, probe, rewards, training.device, **trust)
    if card is not None:
        replace(card, weights=weights_of(folder)).write(folder)
    return metrics


def _read(rows: Any, prepared: Any) -> Pairs | RatedGroups:
    """Return the rows that a trainer prepared, without what it skipped as too long."""
    used = rows.select(prepared["row"])
    if "ratings" not in prepared.column_names:
        return Pairs.from_dataset(used)
    return RatedGroups.from_dataset(used, prepared["kept"] if "kept" in prepared.column_names else None)


def evaluate_reward(reward: Any, eval_set: Pairs | RatedGroups, script: RewardArguments) -> dict[str, float]:
    """Return how often a reward agrees with pairs or rated groups."""
    with progress_of(1, "agreement with the evaluation set"):
        if isinstance(eval_set, RatedGroups):
            return rated_accuracy(reward, eval_set, labels=script.reward_loss == BINARY)
        return reward_accuracy(reward, eval_set)


def _label_results(folder: Path, reward: Any, labeled: RatedGroups, script: RewardArguments) -> dict[str, float]:
    """Return how often a reward agrees with labels, and write the threshold that was found on them."""
    with progress_of(1, "rewards of the evaluation set"):
        rewards = labeled.rewards(reward)
    metrics = rated_accuracy(lambda prompts, completions, **_: rewards, labeled, labels=True)
    labels = [rating > 0.5 for rating in labeled.ratings]
    if len(set(labels)) < 2:
        logger.warning("No threshold is chosen: the held-out rows have one label alone. Hold out rows of both.")
        return metrics
    limits = {"min_precision": script.min_precision, "min_recall": script.min_recall}
    report = find_threshold(rewards, labels, list(map(fingerprint, labeled.prompts)), **limits)
    say(f"{report.headline}. See {report.write(folder)}")
    return metrics | report.metrics()


def _require_rows(trainer, prepared: Any, rows: int, training: RewardTrainingArguments, role: str = "") -> None:
    kept, loss = len(prepared), getattr(trainer, "rating_loss", None)
    what, rule = f"{role}pairs", f"longer than max_length={training.max_length}"
    if loss is not None:
        what = f"{role}groups"
        rule += ", or without two completions of different rating" if loss.compares else ""
    if kept == 0:
        raise InputError(f"all {rows} {what} are {rule} tokens. Raise max_length" if loss is None else (
            f"all {rows} {what} are {rule}. Raise max_length, or give other ratings"
        ))  # fmt: skip
    if kept < rows:
        logger.warning("%d of %d %s are skipped: %s", rows - kept, rows, what, rule)


def _fsdp_casts_weights(trainer) -> bool:
    """Return whether FSDP computes in another dtype than that of the weights (`bf16`): then so do rewards in memory."""
    plugin: Any = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    return plugin is not None and plugin.mixed_precision_policy is not None


class _OwnForward:
    """The trained model's rewards by its own forward pass, as `RewardTrainer` saw them."""

    def __init__(self, model):
        self.model = model.eval()

    @torch.no_grad()
    def __call__(self, input_ids, attention_mask):
        with compute_in_base_dtype(self.model):
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits[:, 0].float()
