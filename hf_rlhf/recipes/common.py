"""Code that the recipes share: loading rows and models, and the result they return."""

import copy
import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_rlhf.checkpoint.computation import Computation
from hf_rlhf.checkpoint.lock import locked, require_folder_name
from hf_rlhf.checkpoint.resume import resume_point
from hf_rlhf.credentials import refuse_secrets
from hf_rlhf.data.report import DataReport
from hf_rlhf.distributed import failing_together, gather_in_order, rank, require_ranks
from hf_rlhf.errors import InputError
from hf_rlhf.hub.model_card import shown_name
from hf_rlhf.hub.push import open_repository
from hf_rlhf.models.adapted import load_policy
from hf_rlhf.models.adapter_files import adapter_base, adapter_folder
from hf_rlhf.models.adapters import base_of, is_peft_model
from hf_rlhf.models.load import load_tokenizer, take_chat_template
from hf_rlhf.models.machine import device_in_words
from hf_rlhf.models.precision import dtype_in_words
from hf_rlhf.models.vocabulary import make_room
from hf_rlhf.progress import say
from hf_rlhf.recipes.arguments import DataArguments, ModelArguments
from hf_rlhf.records import in_the_way
from hf_rlhf.types import Model


@dataclass(frozen=True)
class RunResult:
    """Folder in which a recipe left its model, and the last numbers it measured."""

    output_dir: Path
    metrics: dict[str, float] = field(default_factory=dict)


def output_folder(training) -> Path:
    """Return the folder that a recipe writes to; transformers types it as optional."""
    return Path(str(training.output_dir))


@contextmanager
def run_begun(data: DataArguments, training, *, continues: bool = False) -> Iterator[str | None]:
    """Hold the run's folder while the block runs; yield the checkpoint to resume from, or None for a new run.

    A run that `continues` finds its own files in the folder.

    Raises `InputError` when `output_dir` cannot be written to, is in use, holds files that this run would write over,
    or holds another run and this one does not resume it; when there is nothing to resume; for a tracker that is not
    installed; and for a token in the settings.
    """
    refuse_secrets({"hub_token": training.hub_token}, "settings")  # which are written to files
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for tracker in map(str, training.report_to):
        if tracker not in INTEGRATION_TO_CALLBACK:
            close = difflib.get_close_matches(tracker, INTEGRATION_TO_CALLBACK, n=1)
            meant = f"Did you mean {close[0]}? " if close else ""
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise InputError(f"report_to={tracker} is invalid: there is no such tracker. {meant}There are {known}")
        if tracker not in get_available_reporting_integrations():
            raise InputError(
                f"report_to={tracker}: {tracker} is not installed. Install it with pip, or set report_to to none"
            )
    if data.resume is not None and training.resume_from_checkpoint is not None:
        raise InputError("resume and resume_from_checkpoint have the same meaning. Give one of them")
    require_folder_name(str(training.output_dir))
    require_ranks(training)
    training.device  # noqa: B018 - starts the process group, without which every rank would take the lock
    folder = output_folder(training)
    with locked(folder):
        checkpoint = resume_point(folder, data.resume or training.resume_from_checkpoint)
        if (
            checkpoint is None
            and not continues
            and (found := [why for why in gather_in_order([in_the_way(folder)]) if why])
        ):
            raise InputError(found[0])
        yield checkpoint


def open_hub(training) -> None:
    """Make sure that a push at the end can succeed, if one is asked for. Raises `InputError`.

    It makes the repository, so it comes after what may be found wrong in the data and the model.
    """
    with failing_together():
        if training.push_to_hub and rank() == 0:
            open_repository(output_folder(training), training.hub_model_id, private=training.hub_private_repo)


def release(trainer: Any) -> None:
    """Release what accelerate wrapped: a process group stays open as long as DDP holds it."""
    trainer.accelerator.free_memory()
    trainer.model_wrapped = trainer.model


def announce(report: DataReport, training) -> None:
    """Print what a run is about to learn from, and write it beside what it leaves."""
    if rank() == 0:
        say(str(report))
        report.write(output_folder(training))


def announce_base(model: Model, training) -> None:
    """Print the device of a run of trl's trainers, and the dtype that its base computes in there."""
    if rank() == 0:
        autocast = ", under bfloat16 autocast (bf16)" if training.bf16 else ""
        say(f"device: {device_in_words(training.device, training.world_size)}")
        say(f"dtype: {dtype_in_words(base_of(model), training.device)}{autocast}")


def keep_autocast(training: Any, checkpoint: str | None) -> Any:
    """Return settings of trl's trainers with the autocast of `checkpoint`; print if another one is native here."""
    kept = training.with_autocast_of(checkpoint)
    if kept is not training and rank() == 0:
        names = {True: "bfloat16", False: "none"}
        say(
            f"autocast: {names[kept.bf16]}, as in {Path(str(checkpoint)).name}. Native on this {training.device.type}"
            f" is {names[training.bf16]}. To compute in that from here on, pass --bf16 {str(training.bf16).lower()}"
        )
    return kept


def load_start(model_args: ModelArguments, load: Callable[..., Any] = load_policy, **kwargs: Any):
    """Load the model that the flags name, by `load_policy` or `load_reward_start`; `kwargs` are for that.

    Print what becomes of an adapter.
    """
    base, adapter = base_and_adapter(model_args)
    kwargs |= model_args.load_kwargs()
    trains_adapter = {"adds_adapter": model_args.use_peft, "merges_adapter": not model_args.use_peft}
    model = load(model_args.model_name_or_path, **trains_adapter, **kwargs)
    if adapter is not None and rank() == 0:
        further = "is trained further, with its own settings and not those of the lora_* flags"
        becomes = further if model_args.use_peft else "is merged into its base"
        say(f"start: the adapter {adapter} on {base}; it {becomes}")
    return model


def base_and_adapter(model_args: ModelArguments) -> tuple[str, str | None]:
    """Return the base that the flags name, and the adapter on it where they name one."""
    name = model_args.model_name_or_path
    base = adapter_base(adapter_folder(name))
    return (name, None) if base is None else (base, name)


def own_vocabulary(model: Any) -> int | None:
    """Return the number of embeddings that an adapter needs if its base has others; for a model card."""
    base = base_of(model)
    resized = is_peft_model(model) and getattr(base, "has_own_vocabulary", False)
    return base.get_input_embeddings().weight.shape[0] if resized else None


def start_settings(model_args: ModelArguments, computation: Computation) -> dict[str, Any]:
    """Return dtype and device, and the adapter from which training started, if any; for a model card."""
    adapter = base_and_adapter(model_args)[1]
    started = {} if adapter is None else {"started from the adapter": shown_name(adapter)}
    return started | computation.for_card()


def set_special_tokens(tokenizer: Any, training: Any) -> None:
    """Give the tokenizer the end and padding tokens that the flags name. Raises `InputError` for unknown ones."""
    for name in ("eos_token", "pad_token"):
        token = getattr(training, name, None)
        if token is None:
            continue
        if token not in tokenizer.get_vocab():
            known = ", ".join(map(str, tokenizer.all_special_tokens))
            raise InputError(
                f"{name}={token} is invalid: the tokenizer {tokenizer.name_or_path} has no such token. Its special"
                f" tokens are {known}"
            )
        setattr(tokenizer, name, token)


def tokenizer_of(model_args: ModelArguments, chat_template_path: str | None = None, **kwargs: Any):
    """Load the tokenizer of the model that the flags name, with the chat template of a Jinja file or another tokenizer.

    Another tokenizer's comes with the tokens that it needs, see `take_chat_template`; `kwargs` go to `from_pretrained`.
    """
    tokenizer = load_tokenizer(adapter_folder(model_args.model_name_or_path), **kwargs)
    if chat_template_path is None:
        return tokenizer
    if not Path(chat_template_path).is_file() and not chat_template_path.endswith((".jinja", ".j2")):
        take_chat_template(tokenizer, load_tokenizer(chat_template_path))
        return tokenizer
    try:
        tokenizer.chat_template = Path(chat_template_path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read chat_template_path={chat_template_path}: {reason}") from error
    return tokenizer


def without_template(training: Any) -> Any:
    """Return the settings for TRL's trainer without `chat_template_path`.

    TRL would add tokens that fill the vocabulary up.
    """
    training = copy.copy(training)
    training.chat_template_path = None
    return training


def added_tokens(tokenizer, model_args: ModelArguments, **kwargs: Any) -> list[int]:
    """Return the ids of the tokens that a tokenizer by `tokenizer_of` has and that of the model does not."""
    own = tokenizer_of(model_args, **kwargs).get_vocab()
    return sorted(number for token, number in tokenizer.get_vocab().items() if token not in own)


def make_room_for_template(model: Any, tokenizer, model_args: ModelArguments, config: Any, **kwargs: Any) -> None:
    """Give `model` embeddings for the tokens of `chat_template_path`, trained by the adapter of `config` if any.

    Raises `InputError` for an adapter that is there already: it trains no new tokens.
    """
    tokens = added_tokens(tokenizer, model_args, **kwargs)
    if not tokens:
        return
    if is_peft_model(model):
        raise InputError(
            f"chat_template_path is invalid: it adds {_named(tokens, tokenizer)}, which the adapter"
            f" {model_args.model_name_or_path!r} does not train. Start from its base, omit chat_template_path, or"
            " merge the adapter and train all weights (use_peft false)."
        )
    make_room(model, tokens, config)


def require_no_added_tokens(tokenizer, model_args: ModelArguments) -> None:
    """Raise `InputError` when `chat_template_path` adds tokens, for a run that would not teach them."""
    if tokens := added_tokens(tokenizer, model_args):
        raise InputError(
            f"chat_template_path is invalid: it adds {_named(tokens, tokenizer)}, which the model has never seen."
            " Train them first, by `hf-rlhf sft` with this chat_template_path, and start from its output_dir."
        )


def _named(tokens: Sequence[int], tokenizer) -> str:
    shown = ", ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(tokens[:3]))
    return f"{len(tokens)} tokens ({shown}{', ...' if len(tokens) > 3 else ''})"
