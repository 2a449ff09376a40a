"""The sets of each recipe, checked and reported before anything is trained; `hf-rlhf data` does that alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from hf_rlhf.checkpoint.lock import require_folder_name
from hf_rlhf.data.files import read_rows
from hf_rlhf.data.preferences import check_no_leak
from hf_rlhf.data.report import (
    CheckedSet,
    DataReport,
    Limit,
    check_preferences,
    check_prompt_set,
    check_text_set,
    fingerprints,
)
from hf_rlhf.data.rows import LoadedRows, require_rows
from hf_rlhf.data.tokens import ROW_OPTIONS
from hf_rlhf.errors import InputError
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
from hf_rlhf.recipes.common import load_split, set_special_tokens, tokenizer_of, wants_evaluation
from hf_rlhf.recipes.losses import require_fitting_loss
from hf_rlhf.rewards.sources import reward_tokenizers

TRAINING, EVALUATION, PTX = "training", "evaluation", "PPO-ptx texts"


class Sets(NamedTuple):
    """Training and evaluation sets of a recipe, and the report on them."""

    train: Dataset
    evaluation: Dataset | None
    report: DataReport
    ptx: Dataset | None = None


def reward_sets(script: RewardArguments, training: RewardTrainingArguments, tokenizer) -> Sets:
    """Preference pairs in TRL's format. Raises `InputError` for anything wrong in them, a leak included."""
    limit = Limit("max_length", training.max_length, "are left out")
    train = check_preferences(load_split(script), tokenizer, role=TRAINING, limit=limit)
    _require_batch(train, training)
    if not wants_evaluation(script, training):
        return Sets(train.dataset, None, DataReport([train.report]))
    rows = load_split(script, evaluation=True)
    evaluation = check_preferences(rows, tokenizer, role=EVALUATION, limit=limit)
    shared = check_no_leak(train.dataset, evaluation.dataset, source=rows.source, place=evaluation.place)
    report = DataReport([train.report, evaluation.report], {"evaluation prompts are in training too": shared})
    return Sets(train.dataset, evaluation.dataset, report)


def sft_sets(script: DataArguments, training: SFTTrainingArguments, tokenizer) -> Sets:
    """Demonstrations. Raises `InputError` for anything wrong in them; rows in both sets are a warning."""
    limit = Limit("max_length", training.max_length, "are cut on the right")
    train = check_text_set(load_split(script), tokenizer, role=TRAINING, limit=limit)
    require_fitting_loss(train, training, tokenizer)
    _require_batch(train, training)
    if not wants_evaluation(script, training):
        return Sets(train.dataset, None, DataReport([train.report]))
    evaluation = check_text_set(load_split(script, evaluation=True), tokenizer, role=EVALUATION, limit=limit)
    require_fitting_loss(evaluation, training, tokenizer)
    return _with_shared(train, evaluation, train.report.columns)


def ppo_sets(script: PPOArguments, training: PPOConfig, tokenizer, rewards: Sequence[Any] | None = None) -> Sets:
    """Prompts and the texts of PPO-ptx. Raises `InputError` for anything wrong in them; shared prompts are a warning.

    Prompts are tried with the chat template of each reward model among `rewards`, by default those of `script`.
    """
    then = {"error": "end the run", "filter": "are left out"}.get(training.overlong_prompts, "are cut on the left")
    limit = Limit("max_prompt_length", training.max_prompt_length, then)
    overlong: Any = training.overlong_prompts
    kwargs: Any = training.chat_template_kwargs
    if rewards is None:
        rewards = [name for name in (script.reward_model_path, *(script.reward_funcs or ())) if name]
    check = partial(
        check_prompt_set,
        tokenizer=tokenizer,
        limit=limit,
        overlong=overlong,
        chat_template_kwargs=kwargs,
        reward_tokenizers=reward_tokenizers(rewards),
    )
    train = check(load_split(script), role=TRAINING)
    _require_iteration(train, training)
    sets = Sets(train.dataset, None, DataReport([train.report]))
    if wants_evaluation(script, training):
        evaluation = check(load_split(script, evaluation=True), role=EVALUATION)
        sets = _with_shared(train, evaluation, ["prompt"])
    if script.ptx_dataset_name is None:
        return sets
    limit = Limit("max_ptx_length", training.max_ptx_length, "are cut on the right")
    settings: dict[str, Any] = {"role": PTX, "limit": limit, "all_learnable": True, "chat_template_kwargs": kwargs}
    texts = check_text_set(_ptx_rows(script), tokenizer, **settings)
    sets.report.sets.append(texts.report)
    return sets._replace(ptx=texts.dataset)


def _ptx_rows(script: PPOArguments) -> LoadedRows:
    return read_rows(
        str(script.ptx_dataset_name),
        split=script.ptx_dataset_split,
        config_name=script.ptx_dataset_config,
        skip_bad=script.skip_bad,
    )


def _with_shared(train: CheckedSet, evaluation: CheckedSet, columns: list[str]) -> Sets:
    compared = [*columns, *ROW_OPTIONS]
    shared = fingerprints(train.dataset, compared) & fingerprints(evaluation.dataset, compared)
    what = f"different rows of evaluation are in training too ({', '.join(columns)})"
    return Sets(train.dataset, evaluation.dataset, DataReport([train.report, evaluation.report], {what: len(shared)}))


def _require_batch(checked: CheckedSet, training) -> None:
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if getattr(training, name) < 1:
            raise InputError(f"{name}={getattr(training, name)} is invalid: it must be at least 1")
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    why = (
        f"per_device_train_batch_size {training.per_device_train_batch_size} x gradient_accumulation_steps"
        f" {training.gradient_accumulation_steps} x {training.world_size} ranks"
    )
    require_rows(checked.dataset, batch, source=checked.report.source, why=why)


def _require_iteration(checked: CheckedSet, training: PPOConfig) -> None:
    (lengths,) = checked.report.lengths
    left_out = lengths.above if training.overlong_prompts == "filter" else 0
    rows = range(len(checked.dataset) - left_out)
    require_rows(rows, training.rollout_batch_size, source=checked.report.source, why=training.batch_algebra())


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
