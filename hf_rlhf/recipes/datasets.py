"""The datasets that the flags name: one or a mixture, and what of them is held out for an evaluation."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hf_rlhf.data.files import local_path, read_rows
from hf_rlhf.data.held_out import hold_out, is_below, prompt_keys
from hf_rlhf.data.mixtures import Member, mix
from hf_rlhf.data.prepared import PreparedSet
from hf_rlhf.data.report import SetReport
from hf_rlhf.data.rows import LoadedRows, require_columns
from hf_rlhf.errors import InputError
from hf_rlhf.recipes.arguments import DataArguments, MixtureDataset

TRAINING, EVALUATION = "training", "evaluation"


class TrainAndEvaluation(NamedTuple):
    """The set to train on, the set to evaluate on if the flags ask for one, and the reports on all that was read."""

    train: PreparedSet
    evaluation: PreparedSet | None
    reports: list[SetReport]


def wants_evaluation(data: DataArguments, training) -> bool:
    """Return whether the flags ask for an evaluation set."""
    names_one = data.eval_dataset_name is not None or data.eval_fraction is not None
    return names_one or training.do_eval or str(training.eval_strategy) != "IntervalStrategy.NO"


def prepare_datasets(data: DataArguments, training, prepare: Callable[..., PreparedSet]) -> TrainAndEvaluation:
    """Load and prepare the training set, and the evaluation set if the flags ask for one.

    `prepare` takes rows and a `role`, such as a partial of `prepare_preference_set`. Rows are held out by their prompts
    where `eval_fraction` is set. The datasets of a mixture are prepared one by one, and then mixed.

    Raises `InputError` for anything wrong in the flags or the rows.
    """
    _require_limits(data)
    named = {name: _load(data, each) for name, each in _named(data).items()}
    held: dict[str, LoadedRows] = {}
    notes: dict[str, str] = {}
    if data.eval_fraction is not None:
        split = {name: hold_out(rows, data.eval_fraction) for name, rows in named.items()}
        for name, (_, rows) in split.items():
            counts = f"{len(rows.dataset)} of {len(named[name].dataset)} rows"
            notes[name] = f"held out by their prompts: {counts} (eval_fraction={data.eval_fraction:g})"
        named = {name: train for name, (train, _) in split.items()}
        held = {name: _first(rows, data.max_eval_samples) for name, (_, rows) in split.items()}
    train, reports = _prepared(data, training, named, prepare, TRAINING, notes)
    if not wants_evaluation(data, training):
        return TrainAndEvaluation(train, None, reports)
    held = held or {"": _load_evaluation(data)}
    evaluation, more = _prepared(data, training, held, prepare, EVALUATION, notes)
    return TrainAndEvaluation(train, evaluation, reports + more)


def training_prompt_keys(data: DataArguments) -> set[bytes]:
    """Return a digest, by `prompt_keys`, of each prompt that a run of these flags trains on.

    Raises `InputError` for rows that cannot be read, or whose prompts cannot be told.
    """
    keys = {key for each in _named(data).values() for key in prompt_keys(_load(data, each)) if key is not None}
    return {key for key in keys if data.eval_fraction is None or not is_below(key, data.eval_fraction)}


def _named(data: DataArguments) -> Mapping[str, MixtureDataset]:
    """Return the datasets by the names that reports give them: a Hub name, or the name of a file or folder."""
    if not data.datasets:
        if data.dataset_name is None:
            raise InputError("dataset_name is missing. Give a Hub name, a folder or a file")
        return {"": MixtureDataset(data.dataset_name, data.dataset_config, data.dataset_train_split)}
    named: dict[str, MixtureDataset] = {}
    for each in data.datasets:
        name = (local_path(each.path).exists() and local_path(each.path).resolve().name) or each.path
        name = f"{name}/{each.name}" if each.name else name
        again = sum(known == name or known.startswith(f"{name} (") for known in named)
        named[f"{name} ({again + 1})" if again else name] = each
    return named


def _load(data: DataArguments, each: MixtureDataset) -> LoadedRows:
    rows = read_rows(each.path, split=each.split, config_name=each.name, skip_bad_rows=data.skip_bad_rows)
    if each.columns is not None:
        require_columns(rows.dataset.column_names, each.columns, source=rows.source)
        rows = LoadedRows(rows.dataset.select_columns(each.columns), rows.source, rows.bad_rows, rows.places)
    return _first(rows, data.max_train_samples)


def _load_evaluation(data: DataArguments) -> LoadedRows:
    if data.eval_dataset_name:
        name, split = data.eval_dataset_name, data.dataset_train_split
    elif data.dataset_name is None:
        raise InputError(
            "evaluation needs separate rows, and datasets name only those to train on. Give eval_dataset_name or"
            " eval_fraction"
        )
    elif local_path(data.dataset_name).is_file():
        raise InputError(
            f"evaluation needs separate rows, and dataset_name={data.dataset_name!r} is one file. Give"
            " eval_dataset_name, or eval_fraction to hold out a share of the prompts"
        )
    else:
        name, split = data.dataset_name, data.dataset_test_split
    rows = read_rows(name, split=split, config_name=data.dataset_config, skip_bad_rows=data.skip_bad_rows)
    return _first(rows, data.max_eval_samples)


def _require_limits(data: DataArguments) -> None:
    for flag in ("max_train_samples", "max_eval_samples"):
        limit = getattr(data, flag)
        if limit is not None and limit < 1:
            raise InputError(f"{flag}={limit} leaves no row. Use at least 1, or omit it for all")


def _first(rows: LoadedRows, limit: int | None) -> LoadedRows:
    return rows if limit is None or limit >= len(rows.dataset) else rows.select(range(limit))


def _prepared(
    data: DataArguments,
    training: Any,
    named: Mapping[str, LoadedRows],
    prepare: Callable[..., PreparedSet],
    role: str,
    notes: Mapping[str, str],
) -> tuple[PreparedSet, list[SetReport]]:
    """Return the one set of these rows and the reports on it. Shares are for training: all held-out rows are used."""
    prepared = {name: prepare(rows, role=role) for name, rows in named.items()}
    for name, note in notes.items():
        prepared[name].report.notes.append(note)
    reports = [each.report for each in prepared.values()]
    if list(prepared) == [""]:
        return prepared[""], reports
    fractions = [each.fraction if role == TRAINING else None for each in data.datasets or ()]
    members = [Member(*each) for each in zip(prepared, fractions, prepared.values(), strict=True)]
    mixed = mix(members, seed=training.seed)
    return mixed, [*reports, mixed.report]
