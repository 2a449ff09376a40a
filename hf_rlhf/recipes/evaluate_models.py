"""The models that an evaluation compares, and the held-out prompts as each of them reads them."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from hf_rlhf.data.files import read_rows
from hf_rlhf.data.prompts import prepare_prompt_set
from hf_rlhf.data.report import Limit
from hf_rlhf.errors import InputError
from hf_rlhf.hub.model_card import shown_name
from hf_rlhf.models.adapter_files import adapter_base, adapter_folder
from hf_rlhf.models.load import load_tokenizer, public_name, read_config
from hf_rlhf.recipes.evaluate_arguments import EvaluateArguments
from hf_rlhf.records import read_settings
from hf_rlhf.rollout.sampling import Sampling

POLICY_NAME, START_NAME, BASE_NAME = "policy", "start", "base"


class ComparedModel(NamedTuple):
    """One of the models, its name in the results, and what its files are called."""

    name: str
    path: str

    @property
    def stem(self) -> str:
        """The beginning of the names of its files."""
        return re.sub(r"[^\w.-]+", "_", self.name)


@dataclass(frozen=True)
class Prompts:
    """The held-out prompts as one model reads them."""

    tokenizer: Any
    rows: Sequence[Mapping[str, Any]]  # `prompt`, `prompt_ids`, and every other column

    @property
    def digest(self) -> str:
        """Sha256 of the ids."""
        return hashlib.sha256(json.dumps([list(row["prompt_ids"]) for row in self.rows]).encode()).hexdigest()


def compared_models(args: EvaluateArguments) -> list[ComparedModel]:
    """Return the policy and then its baselines. Raises `InputError` where no baseline is given and none is recorded."""
    policy = str(args.policy)
    start = recorded_start(policy)
    base = start or adapter_base(adapter_folder(policy))  # which need not be where training began
    paths = list(args.baseline or ()) or ([base] if base else [])
    if not paths:
        raise InputError(
            f"baseline is missing: {policy!r} has no record of its start (it is no adapter, and no config.yaml lies"
            " with it). Give the model to compare it to."
        )
    found = [ComparedModel(POLICY_NAME, policy)]
    for path in paths:
        is_start = start is not None and _same(path, start)
        is_base = start is None and path == base
        name = START_NAME if is_start else BASE_NAME if is_base else shown_name(public_name(path))
        name = path if name in (START_NAME, BASE_NAME) and not is_start and not is_base else name
        again = sum(re.sub(r" \(\d+\)$", "", each.name) == name for each in found)
        found.append(ComparedModel(f"{name} ({again + 1})" if again else name, path))
    return found


def recorded_start(policy: str) -> str | None:
    """Return the model that a policy was trained from, by its run's config.yaml; None where there is none."""
    return read_settings(Path(adapter_folder(policy))).get("model_name_or_path")


def _same(one: str, other: str) -> bool:
    return one == other or (os.path.isdir(one) and os.path.isdir(other) and os.path.samefile(one, other))


def sampling_of(args: EvaluateArguments) -> tuple[Sampling, dict[str, Any]]:
    """Return the settings of completions and the arguments of the chat template: the flags', else those of the run."""
    recorded = read_settings(Path(adapter_folder(str(args.policy))))
    names = {field.name for field in fields(Sampling)}
    settings = {name: recorded[name] for name in names if recorded.get(name) is not None}
    settings |= {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    for name in ("stop_token_ids", "stop_strings"):
        settings[name] = tuple(settings.get(name) or ())
    kwargs = recorded.get("chat_template_kwargs") if args.chat_template_kwargs is None else args.chat_template_kwargs
    try:
        kwargs = json.loads(kwargs) if isinstance(kwargs, str) else kwargs
    except ValueError as error:
        raise InputError(
            f'chat_template_kwargs={kwargs!r} is invalid: it is no JSON. Write it as {{"enable_thinking": false}}.'
        ) from error
    return Sampling(**settings), dict(kwargs or {})


def prompts_of(
    args: EvaluateArguments, models: Sequence[ComparedModel], sampling: Sampling, template: Mapping[str, Any]
) -> list[Prompts]:
    """Read the held-out prompts, and render them by the tokenizer of each model.

    Raises `InputError` for rows that cannot be used, for a model without a chat template where they are messages, and
    for prompts that leave no room for a completion.
    """
    rows = read_rows(
        str(args.dataset_name),
        split=args.dataset_split,
        config_name=args.dataset_config,
        skip_bad_rows=args.skip_bad_rows,
    )
    if args.max_prompts is not None and args.max_prompts < len(rows.dataset):
        rows = rows.select(range(args.max_prompts))
    found = []
    for model in models:
        tokenizer = load_tokenizer(adapter_folder(model.path))
        if rows.dataset.num_rows and isinstance(rows.dataset[0].get("prompt"), list) and not tokenizer.chat_template:
            raise InputError(
                f"{rows.source} is invalid for {model.path!r}: the prompts are messages, and this model's tokenizer has"
                " no chat template. Give prompts that are text, or another model."
            )
        prepared = prepare_prompt_set(
            rows,
            tokenizer,
            role="evaluation",
            limit=Limit("max_prompt_length", None, ""),
            chat_template_kwargs=template,
        )
        _require_room(model, max(map(len, prepared.dataset["prompt_ids"])), sampling)
        made: list[Any] = list(prepared.dataset)
        found.append(Prompts(tokenizer, made))
    if any([row["prompt"] for row in each.rows] != [row["prompt"] for row in found[0].rows] for each in found):
        counts = ", ".join(f"{model.name} {len(each.rows)}" for model, each in zip(models, found, strict=True))
        raise InputError(
            f"{rows.source} is invalid: the chat templates of the models refuse different rows ({counts} are left)."
            " Remove the rows that one of them refuses."
        )
    return found


def _require_room(model: ComparedModel, longest: int, sampling: Sampling) -> None:
    """Raise `InputError` for prompts that leave no room for a completion among the model's positions."""
    folder = adapter_folder(model.path)
    config = read_config(adapter_base(folder) or model.path)
    places = getattr(config.get_text_config(), "max_position_embeddings", None)
    if places is not None and longest + sampling.max_completion_length > places:
        raise InputError(
            f"max_completion_length={sampling.max_completion_length} is invalid: with the longest prompt of {longest}"
            f" tokens it is more than the {places} positions of {model.path!r}. Lower it, or remove long prompts."
        )
