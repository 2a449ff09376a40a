"""The sets of each recipe, checked and reported before anything is trained; `hf-rlhf data` does that alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hf_rlhf.checkpoint.lock import require_folder_name
from hf_rlhf.data.files import read_rows
from hf_rlhf.data.groups import prepare_rating_set
from hf_rlhf.data.layouts import layout_of
from hf_rlhf.data.preferences import check_no_leak, prepare_preference_set
from hf_rlhf.data.prepared import PreparedSet
from hf_rlhf.data.prompts import prepare_prompt_set, prompt_limit
from hf_rlhf.data.public_formats import RATINGS
from hf_rlhf.data.rated import check_no_rated_leak, require_labels
from hf_rlhf.data.report import DataReport, Limit
from hf_rlhf.data.rows import LoadedRows, require_rows
from hf_rlhf.data.texts import prepare_ptx_set, prepare_text_set
from hf_rlhf.data.tokens import NOTHING
from hf_rlhf.errors import InputError
from hf_rlhf.ops.preference import BINARY, BRADLEY_TERRY, RATING_LOSSES
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.progress import say
from hf_rlhf.recipes.arguments import (
    DataArguments,
    ModelArguments,
    PPOArguments,
    RewardArguments,
    RewardTrainingArguments,
    SFTTrainingArguments,
    flag,
)
from hf_rlhf.recipes.common import set_special_tokens, tokenizer_of
from hf_rlhf.recipes.datasets import TrainAndEvaluation, prepare_datasets
from hf_rlhf.recipes.losses import require_fitting_loss
from hf_rlhf.rewards.sources import reward_tokenizers

PTX = "PPO-ptx texts"


class Sets(NamedTuple):
    """Training and evaluation sets of a recipe, and the report on them.

    `reward_tokenizers` are those that prompts were counted by, under the names of the reward models.
    """

    train: PreparedSet
    evaluation: PreparedSet | None
    report: DataReport
    ptx: PreparedSet | None = None
    reward_tokenizers: Mapping[str, Any] = NOTHING


def reward_sets(script: RewardArguments, training: RewardTrainingArguments, tokenizer) -> Sets:
    """Prepare preference pairs in TRL's format, or rated groups for a loss of those.

    Raises `InputError` for anything wrong in them, a leak included.
    """
    limit = Limit("max_length", training.max_length, "are skipped")
    if script.reward_loss != BRADLEY_TERRY:
        return _rated_sets(script, training, tokenizer, limit)
    weights = script.weights_of_ratings()

    def prepare(rows: LoadedRows, *, role: str) -> PreparedSet:
        rated = weights and layout_of(rows.dataset, source=rows.source).public == RATINGS
        settings: dict[str, Any] = {"role": role, "limit": limit, "rating_weights": weights if rated else NOTHING}
        return prepare_preference_set(rows, tokenizer, **settings)

    train, evaluation, reports = prepare_datasets(script, training, prepare)
    if weights and not any(report.layout == RATINGS for report in reports):
        raise InputError(
            f"rating_weights={','.join(script.rating_weights or ())} is invalid: no dataset holds {RATINGS}. Omit it"
        )
    _require_batch(train, training)
    if "margin" in train.dataset.column_names:
        taken = "taken by the loss" if margins_are_used(train, script) else "not in the loss, unless use_margin is true"
        train.report.notes.append(f"margins: {taken}")
    if evaluation is None:
        return Sets(train, None, DataReport(reports))
    shared = check_no_leak(train.dataset, evaluation.dataset, source=evaluation.report.source, place=evaluation.place)
    return Sets(train, evaluation, DataReport(reports, {"evaluation prompts are in training too": shared}))


def _rated_sets(script: RewardArguments, training: RewardTrainingArguments, tokenizer, limit: Limit) -> Sets:
    compared = RATING_LOSSES[script.reward_loss].compares
    weights = script.weights_of_ratings()

    def prepare(rows: LoadedRows, *, role: str) -> PreparedSet:
        prepared = prepare_rating_set(
            rows, tokenizer, role=role, limit=limit, rating_weights=weights, compared=compared
        )
        return require_labels(prepared) if script.reward_loss == BINARY else prepared

    train, evaluation, reports = prepare_datasets(script, training, prepare)
    _require_batch(train, training)
    if evaluation is None:
        return Sets(train, None, DataReport(reports))
    shared = check_no_rated_leak(train, evaluation, source=evaluation.report.source)
    return Sets(train, evaluation, DataReport(reports, {"evaluation prompts are in training too": shared}))


def sft_sets(script: DataArguments, training: SFTTrainingArguments, tokenizer) -> Sets:
    """Prepare demonstrations. Raises `InputError` for anything wrong in them; warns of rows in both sets."""
    limit = Limit("max_length", training.max_length, "are cut on the right")

    def prepare(rows: LoadedRows, *, role: str) -> PreparedSet:
        prepared = prepare_text_set(rows, tokenizer, role=role, limit=limit)
        require_fitting_loss(prepared, training, tokenizer)
        return prepared

    found = prepare_datasets(script, training, prepare)
    _require_batch(found.train, training)
    return _with_shared(found, found.train.report.columns)


def ppo_sets(script: PPOArguments, training: PPOConfig, tokenizer, rewards: Sequence[Any] | None = None) -> Sets:
    """Prepare prompts and texts of PPO-ptx. Raises `InputError` for anything wrong in them; warns of shared prompts.

    Prompts are tried with the chat template of each reward model among `rewards`, by default those of `script`.
    """
    overlong: Any = training.overlong_prompts
    kwargs: Any = training.chat_template_kwargs
    if rewards is None:
        rewards = [name for name in (script.reward_model_path, *(script.reward_funcs or ())) if name]
    tokenizers = reward_tokenizers(rewards)
    prepare = partial(
        prepare_prompt_set,
        tokenizer=tokenizer,
        limit=prompt_limit(training.max_prompt_length, overlong),
        overlong=overlong,
        chat_template_kwargs=kwargs,
        reward_tokenizers=tokenizers,
    )
    found = prepare_datasets(script, training, prepare)
    _require_iteration(found.train, training)
    sets = _with_shared(found, ["prompt"])._replace(reward_tokenizers=tokenizers)
    if script.ptx_dataset_name is None:
        return sets
    settings: dict[str, Any] = {"max_ptx_length": training.max_ptx_length, "chat_template_kwargs": kwargs}
    texts = prepare_ptx_set(_ptx_rows(script), tokenizer, role=PTX, **settings)
    sets.report.sets.append(texts.report)
    return sets._replace(ptx=texts)


def _ptx_rows(script: PPOArguments) -> LoadedRows:
    return read_rows(
        str(script.ptx_dataset_name),
        split=script.ptx_dataset_split,
        config_name=script.ptx_dataset_config,
        skip_bad_rows=script.skip_bad_rows,
    )


def _with_shared(found: TrainAndEvaluation, columns: list[str]) -> Sets:
    train, evaluation, reports = found
    if evaluation is None:
        return Sets(train, None, DataReport(reports))
    shared = train.fingerprints & evaluation.fingerprints
    what = f"different rows of evaluation are in training too ({', '.join(columns)})"
    return Sets(train, evaluation, DataReport(reports, {what: len(shared)}))


def margins_are_used(train: PreparedSet, script: RewardArguments) -> bool:
    """Return whether the loss takes margins: by default those that the set gives, and none made of its scores."""
    return "margin" in train.report.columns if script.use_margin is None else script.use_margin


def pairs_for_loss(dataset: Any, *, margins: bool) -> Any:
    """Return pairs as the loss takes them: without their margins, or with 0 for each that is unknown."""
    if dataset is None or "margin" not in dataset.column_names:
        return dataset
    known = [margin or 0.0 for margin in dataset["margin"]] if margins else []
    dataset = dataset.remove_columns("margin")
    return dataset.add_column("margin", known) if margins else dataset


def _require_batch(prepared: PreparedSet, training) -> None:
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if getattr(training, name) < 1:
            raise InputError(f"{name}={getattr(training, name)} is invalid: it must be at least 1")
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    why = (
        f"per_device_train_batch_size {training.per_device_train_batch_size} x gradient_accumulation_steps"
        f" {training.gradient_accumulation_steps} x {training.world_size} ranks"
    )
    require_rows(prepared.dataset, batch, source=prepared.report.source, why=why)


def _require_iteration(prepared: PreparedSet, training: PPOConfig) -> None:
    source, why = prepared.report.source, training.batch_algebra()
    require_rows(prepared.dataset, training.prompts_per_iteration, source=source, why=why)


@dataclass
class DataCommandArguments:
    """Folder for the report of `hf-rlhf data`, besides the screen."""

    report_folder: str | None = flag(None, "A folder to write data_report.json to.")


def report_data(stage: str, command: DataCommandArguments, script, training, model: ModelArguments) -> DataReport:
    """Check the sets that `hf-rlhf <stage>` would train on by the same flags, and print the report; nothing is trained.

    Raises `InputError` for rows, and numbers of rows, that would end the run, and for a folder that cannot be written
    to.
    """
    if command.report_folder is not None:
        require_folder_name(command.report_folder, "report_folder")
    chat_template_path = script.chat_template_path if stage == "ppo" else training.chat_template_path
    trust = getattr(training, "trust_remote_code", False)  # ppo has no such flag
    tokenizer = tokenizer_of(model, chat_template_path, trust_remote_code=trust)
    set_special_tokens(tokenizer, training)
    report = STAGES[stage](script, training, tokenizer).report
    say(str(report))
    if command.report_folder is not None:
        try:
            report.write(Path(command.report_folder))
        except OSError as error:
            raise InputError(
                f"report_folder={command.report_folder!r} cannot be written to: {error.strerror}"
            ) from error
    return report


STAGES: dict[str, Callable[..., Sets]] = {"sft": sft_sets, "reward": reward_sets, "ppo": ppo_sets}
