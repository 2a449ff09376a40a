"""Train several reward models on one loaded base, each an adapter from another seed: an ensemble."""

import copy
import json
import random
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import set_seed

from hf_rlhf.checkpoint.folders import checkpoints, rename_unused
from hf_rlhf.checkpoint.resume import AUTO, LAST, NEVER, resume_point
from hf_rlhf.data.prepared import rows_of
from hf_rlhf.data.rows import fingerprint, read_columns, require_rows
from hf_rlhf.data.training_rows import tokenized_groups, tokenized_pairs
from hf_rlhf.distributed import asked_for, by_first_rank, rank
from hf_rlhf.errors import InputError
from hf_rlhf.evaluation.report_card.baselines import MAX_TRAIN_PAIRS, spread
from hf_rlhf.evaluation.report_card.guard import weights_of
from hf_rlhf.evaluation.reward_model import Pairs, RatedGroups
from hf_rlhf.hub.push import push_folder
from hf_rlhf.models.adapted import head_name
from hf_rlhf.models.adapters import base_of, is_peft_model
from hf_rlhf.ops.preference import BINARY, REGRESSION
from hf_rlhf.progress import progress_of, say
from hf_rlhf.recipes.arguments import ModelArguments, RewardArguments, RewardTrainingArguments
from hf_rlhf.recipes.common import (
    RunResult,
    announce,
    keep_autocast,
    open_hub,
    output_folder,
    own_vocabulary,
    release,
    run_begun,
    start_settings,
)
from hf_rlhf.recipes.report_card import card_of_run
from hf_rlhf.recipes.reward import RewardParts, evaluate_reward, load_parts, train_and_save
from hf_rlhf.recipes.reward_results import RESULT_FILE, write_card, write_results
from hf_rlhf.records import held_by_another_run, write_settings
from hf_rlhf.rewards.ensemble import ENSEMBLE_FILE, EnsembleFile, EnsembleReward, load_ensemble

_CENTERED_ROWS = 64  # of training, by whose completions the levels of the members are measured


def train_reward_ensemble(
    script: RewardArguments, training: RewardTrainingArguments, model: ModelArguments
) -> RunResult:
    """Train `script.num_reward_models` adapters and save each to a folder `member_<n>` of `training.output_dir`.

    Member n starts from `seed + n - 1`: its score head, its LoRA matrices and the order of its rows. With
    `ensemble_halves` it trains on a random half of the prompts. Each is a reward model as `train_reward_model` saves
    one; ensemble.json beside them makes the folder a reward. A run that was killed resumes with the member it was at.

    Raises `InputError` for anything wrong in the flags or the data, before training starts.
    """
    _require_fitting(script, training, model)
    resumes, training = _resumes(script, training), copy.copy(training)
    training.resume_from_checkpoint = None
    folder = output_folder(training)
    continues = resumes is not None and (folder / ENSEMBLE_FILE).is_file()
    with run_begun(replace(script, resume=NEVER), training, continues=continues):  # it is members that have checkpoints
        record = by_first_rank(lambda: _open(folder, script, training, resumes))
        checkpoint = _resume_member(_member_folder(folder, len(record.members))) if resumes else None
        training = keep_autocast(training, checkpoint)
        model = model.on(training.device, checkpoint)
        parts = load_parts(script, training, model)
        if is_peft_model(parts.classifier):
            raise InputError(
                f"num_reward_models={script.num_reward_models} is invalid: {model.model_name_or_path!r} is an adapter,"
                " and members start from a base. Merge it into its base first."
            )
        open_hub(training)
        announce(parts.sets.report, training)
        vocabulary, start = None, {}
        for number in range(len(record.members), record.wanted):
            vocabulary, start = _train_member(number, parts, script, training, model, checkpoint)
            checkpoint = None
            record = replace(record, members=(*record.members, _member_folder(folder, number).name))
            if rank() == 0:
                record.write(folder)
        metrics: dict[str, float] = {}
        if rank() == 0:
            metrics = _finish(folder, parts, script, training, model, vocabulary, start)
        return RunResult(folder, metrics)


def _train_member(
    number: int,
    parts: RewardParts,
    script: RewardArguments,
    training: RewardTrainingArguments,
    model: ModelArguments,
    checkpoint: str | None,
) -> tuple[int | None, dict[str, Any]]:
    """Train one member and leave the base as it was, without the adapter; return what its card says of it."""
    own = member_settings(training, number)
    if rank() == 0:
        say(f"member {number + 1} of {script.num_reward_models}: seed {own.seed}, in {own.output_dir}")
    restart_head(parts.classifier, own.seed)
    rows = _half(parts.sets.train.dataset, own.seed) if script.ensemble_halves else None
    if rows is not None:
        why = "each member trains on a half of the prompts (ensemble_halves)"
        least = own.train_batch_size * own.gradient_accumulation_steps * own.world_size
        require_rows(rows, least, source=parts.sets.train.report.source, why=why)
    alone = replace(script, num_reward_models=1, ensemble_halves=False, resume=None)
    trainer = parts.trainer(alone, own, rows)
    train_and_save(trainer, parts, alone, own, model, checkpoint, rows, card=False)
    facts = own_vocabulary(trainer.model), start_settings(model, trainer.computation)
    trained: Any = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    release(trainer)
    unload(trained)
    return facts


def member_settings(training: RewardTrainingArguments, number: int) -> RewardTrainingArguments:
    """Return the settings of member `number`, counted from 0: its own folder and seeds; it is not pushed alone."""
    data_seed = None if training.data_seed is None else training.data_seed + number
    folder = str(_member_folder(output_folder(training), number))
    changed = {"output_dir": folder, "seed": training.seed + number, "data_seed": data_seed}
    return replace(training, **changed, push_to_hub=False, resume_from_checkpoint=None)


def restart_head(classifier: Any, seed: int) -> None:
    """Give a sequence classifier the random score head that it would be loaded with under this seed."""
    head = getattr(classifier, head_name(classifier))
    set_seed(seed)
    with torch.no_grad():
        for module in head.modules():
            for parameter in module.parameters(recurse=False):
                parameter._is_hf_initialized = False  # pyright: ignore[reportAttributeAccessIssue]
            module._is_hf_initialized = False  # pyright: ignore[reportAttributeAccessIssue]
            classifier._init_weights(module)


def unload(trained: Any) -> None:
    """Take the adapter off the base that it was trained on; the head goes back to the base's dtype."""
    dtype = base_of(trained).dtype
    base = trained.unload()
    head = getattr(base, head_name(base))
    head.requires_grad_(True).to(dtype)


def _finish(
    folder: Path,
    parts: RewardParts,
    script: RewardArguments,
    training: RewardTrainingArguments,
    model: ModelArguments,
    vocabulary: int | None,
    start: dict[str, Any],
) -> dict[str, float]:
    """Write what makes the folder a reward, and measure it on the evaluation set."""
    parts.tokenizer.save_pretrained(folder)
    write_settings(folder, training, model, script)
    metrics = {"train_rows": fmean(_train_rows(folder, script))}
    as_trained = model.load_kwargs() | {"dtype": base_of(parts.classifier).dtype}
    as_trained["trust_remote_code"] = training.trust_remote_code
    with progress_of(1, "loading all members, and measuring their levels"):
        reward = load_ensemble(folder, device=training.device, unfinished=True, **as_trained)
        if script.reward_loss not in (REGRESSION, BINARY):
            reward.centers = _measure_centers(reward, parts, script, training.max_length)
            replace(EnsembleFile.read(folder), centers=reward.centers).write(folder)
    if (eval_set := rows_of(parts.sets.evaluation)) is not None:
        spreads: list[float] = []

        def logging_spread(prompts, completions, **columns):
            return reward(prompts, completions, log_extra=lambda _, values: spreads.extend(values), **columns)

        fitting = _fitting(eval_set, parts.tokenizer, script, training.max_length)
        metrics |= evaluate_reward(logging_spread, fitting, script)
        metrics["eval_disagreement"] = sum(spreads) / len(spreads)
        if script.reward_loss != BINARY:
            left = len(set(fitting.groups)) if isinstance(fitting, RatedGroups) else len(fitting.prompts)
            rows = parts.sets.train.dataset
            rows = rows.select(spread(len(rows), MAX_TRAIN_PAIRS))
            known = RatedGroups.from_dataset(rows) if script.rates else Pairs.from_dataset(rows)
            skipped, limit = len(eval_set) - left, training.max_length
            if (card := card_of_run(folder, reward, fitting, known, script, skipped=skipped, limit=limit)) is not None:
                replace(card, weights=weights_of(folder)).write(folder)
    write_results(folder, metrics)
    write_card(folder, script, training, model, metrics, vocabulary, start)
    if training.push_to_hub:
        push_folder(folder, training.hub_model_id, private=training.hub_private_repo)
    return metrics


def _train_rows(folder: Path, script: RewardArguments) -> list[float]:
    """Return how many rows each member was trained on."""
    files = [_member_folder(folder, number) / RESULT_FILE for number in range(script.num_reward_models)]
    return [json.loads(file.read_text(encoding="utf-8"))["train_rows"] for file in files]


def _measure_centers(
    reward: EnsembleReward, parts: RewardParts, script: RewardArguments, limit: int | None
) -> tuple[float, ...]:
    """Return the mean reward of each member on completions of some training rows."""
    rows = parts.sets.train.dataset
    held = _fitting(rows.select(spread(len(rows), _CENTERED_ROWS)), parts.tokenizer, script, limit)
    prompts, completions, options = held.texts
    if isinstance(held, Pairs):
        prompts, completions = [*prompts, *prompts], [*completions, *held.rejected]
        options = {name: [*values, *values] for name, values in options.items()}
    if not completions:  # the rows that fit are others: nothing says what the levels are
        return (0.0,) * len(reward.members)
    return tuple(reward.rewards(prompts, completions, options).double().mean(dim=0).tolist())


def _fitting(rows: Any, tokenizer: Any, script: RewardArguments, limit: int | None) -> Pairs | RatedGroups:
    """Return the rows of an evaluation set that members were evaluated on: those that are not too long."""
    if script.rates:
        groups = tokenized_groups(rows, tokenizer, source="eval")["completions_ids"]
        kept = [[i for i, ids in enumerate(group) if limit is None or len(ids) <= limit] for group in groups]
        return RatedGroups.from_dataset(rows, kept)
    pairs = tokenized_pairs(rows, tokenizer, source="eval")
    longest = [max(map(len, pair)) for pair in zip(pairs["chosen_ids"], pairs["rejected_ids"], strict=True)]
    return Pairs.from_dataset(rows.select([row for row, n in enumerate(longest) if limit is None or n <= limit]))


def _half(rows: Any, seed: int) -> Any:
    """Return the rows of a random half of the prompts, in their order; rows of one prompt stay together."""
    names = ["prompt"] if "prompt" in rows.column_names else ["chosen"]
    prompts = list(map(fingerprint, *read_columns(rows, names).values()))
    distinct = sorted(set(prompts))
    chosen = set(random.Random(seed).sample(distinct, (len(distinct) + 1) // 2))
    return rows.select([row for row, prompt in enumerate(prompts) if prompt in chosen])


def _require_fitting(script: RewardArguments, training: RewardTrainingArguments, model: ModelArguments) -> None:
    """Raise `InputError` where several adapters cannot be trained on one base."""
    wanted = f"num_reward_models={script.num_reward_models} is invalid"
    if not model.use_peft:
        raise InputError(
            f"{wanted} with use_peft=false: members are adapters on one base. Omit use_peft, or train models alone."
        )
    if asked_for("ACCELERATE_USE_FSDP") or asked_for("ACCELERATE_USE_DEEPSPEED") or training.deepspeed:
        raise InputError(
            f"{wanted} under FSDP or DeepSpeed, which keep the base that they sharded. Train under DDP or in one"
            " process, or train members as runs of their own, with other seeds."
        )


def _resumes(script: RewardArguments, training: RewardTrainingArguments) -> str | None:
    """Return `auto` or `last` for a run that resumes, None for a new one. Raises `InputError` for a checkpoint."""
    if script.resume is not None and training.resume_from_checkpoint is not None:
        raise InputError("resume and resume_from_checkpoint have the same meaning. Give one of them")
    choice = str(script.resume or training.resume_from_checkpoint or NEVER).lower()
    known = {AUTO: AUTO, LAST: LAST, "true": LAST, NEVER: None, "none": None, "false": None}
    if choice not in known:
        raise InputError(
            f"resume={choice} is invalid with num_reward_models={script.num_reward_models}: a checkpoint is of one"
            f" member. Use {AUTO} or {LAST}."
        )
    return known[choice]


def _resume_member(folder: Path) -> str | None:
    """Return the checkpoint of the member that was not finished; one that has none starts anew, its files renamed."""

    def clear() -> None:
        if folder.is_dir() and not checkpoints(folder):
            rename_unused(folder)

    by_first_rank(clear)
    return resume_point(folder, AUTO) if folder.is_dir() else None


def _open(
    folder: Path, script: RewardArguments, training: RewardTrainingArguments, resumes: str | None
) -> EnsembleFile:
    """Return what the folder has of the ensemble already; begin one where it has none. Raises `InputError`."""
    settings = {"seed": training.seed, "ensemble_halves": script.ensemble_halves, "reward_loss": script.reward_loss}
    combination = {"combination": script.ensemble_reward, "std_coef": script.ensemble_std_coef}
    if not (folder / ENSEMBLE_FILE).is_file():
        if resumes == LAST:
            raise InputError(
                f"resume={LAST} is invalid: nothing to resume, {folder} holds no {ENSEMBLE_FILE}. Use resume={AUTO} for"
                " a new run."
            )
        if any(_member_folder(folder, number).exists() for number in range(script.num_reward_models)):
            raise InputError(held_by_another_run(folder))
        record = EnsembleFile(script.num_reward_models, settings=settings, **combination)
        folder.mkdir(parents=True, exist_ok=True)
        record.write(folder)
        return record
    if resumes is None:
        raise InputError(held_by_another_run(folder))
    record = EnsembleFile.read(folder)
    for name, value in settings.items():
        if record.settings.get(name) != value:
            raise InputError(
                f"{name}={value} is invalid: the ensemble in {folder} was begun with {record.settings.get(name)}. Set"
                " it to that, or choose another output_dir."
            )
    if script.num_reward_models < len(record.members):
        raise InputError(
            f"num_reward_models={script.num_reward_models} is invalid: {folder} has {len(record.members)} members"
            " already. Choose another output_dir for a smaller ensemble."
        )
    return replace(record, wanted=script.num_reward_models, **combination)


def _member_folder(folder: Path, number: int) -> Path:
    return folder / f"member_{number + 1}"
