"""What the recipes share: loading rows and models, and the result they return."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_rlhf.checkpoint.lock import locked, require_folder_name
from hf_rlhf.checkpoint.resume import resume_point
from hf_rlhf.data.files import load_rows
from hf_rlhf.distributed import gather_in_order
from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import adapter_folder
from hf_rlhf.models.load import load_policy, load_tokenizer
from hf_rlhf.recipes.arguments import DataArguments, ModelArguments
from hf_rlhf.records import held_by_another_run


@dataclass(frozen=True)
class RunResult:
    """Where a recipe left its model, and the last numbers it measured."""

    output_dir: Path
    metrics: dict[str, float] = field(default_factory=dict)


def output_folder(training) -> Path:
    """Where a recipe writes; transformers types it as optional."""
    return Path(str(training.output_dir))


@contextmanager
def run_begun(data: DataArguments, training, marker: str) -> Iterator[str | None]:
    """Hold the run's folder as long as the block; gives the checkpoint to go on from, or None for a new run.

    Raises `InputError` when `output_dir` cannot be written to, is in use, or holds another run (`marker` is a file that
    each leaves) and this one does not resume it; when there is nothing to resume; and for a tracker that is not
    installed.
    """
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for tracker in set(training.report_to) & set(INTEGRATION_TO_CALLBACK) - set(get_available_reporting_integrations()):
        raise InputError(f"report_to={tracker}: {tracker} is not installed; pip install it, or set report_to to none")
    if data.resume is not None and training.resume_from_checkpoint is not None:
        raise InputError("resume and resume_from_checkpoint say the same thing; give one of them")
    require_folder_name(str(training.output_dir))
    training.device  # noqa: B018 - starts the process group, without which every rank would take the lock
    folder = output_folder(training)
    with locked(folder):
        checkpoint = resume_point(folder, data.resume or training.resume_from_checkpoint)
        if checkpoint is None and any(gather_in_order([(folder / marker).exists()])):
            raise InputError(held_by_another_run(folder))
        yield checkpoint


def release(trainer: Any) -> None:
    """Let go of what accelerate wrapped: a process group stays open as long as DDP holds it."""
    trainer.accelerator.free_memory()
    trainer.model_wrapped = trainer.model


def load_split(data: DataArguments, *, evaluation: bool = False):
    """The training rows, or the evaluation rows; returns `(dataset, name for messages)`."""
    if data.dataset_name is None:
        raise InputError("dataset_name is missing; give a Hub name, a folder or a file")
    if evaluation and data.eval_dataset_name:
        name, split, limit = data.eval_dataset_name, data.dataset_train_split, data.max_eval_samples
    elif evaluation:
        if Path(data.dataset_name).is_file():
            raise InputError(
                f"evaluation asks for rows of its own, and dataset_name={data.dataset_name!r} is one file; give"
                " eval_dataset_name"
            )
        name, split, limit = data.dataset_name, data.dataset_test_split, data.max_eval_samples
    else:
        name, split, limit = data.dataset_name, data.dataset_train_split, data.max_train_samples
    dataset = load_rows(name, split=split, config_name=data.dataset_config)
    return dataset.select(range(min(limit or len(dataset), len(dataset)))), f"{name} ({split})"


def wants_evaluation(data: DataArguments, training) -> bool:
    """Whether the flags ask for an evaluation set."""
    return (
        data.eval_dataset_name is not None or training.do_eval or str(training.eval_strategy) != "IntervalStrategy.NO"
    )


def load_model_and_tokenizer(
    model_args: ModelArguments, chat_template_path: str | None = None, *, trainable: bool = False
):
    """The causal LM that the flags name, as a `PeftModel` when they name an adapter, and its tokenizer."""
    name = adapter_folder(model_args.model_name_or_path)
    model = load_policy(name, adds_adapter=model_args.use_peft, trainable=trainable, **model_args.load_kwargs())
    tokenizer = load_tokenizer(name)
    if chat_template_path is not None:
        try:
            tokenizer.chat_template = Path(chat_template_path).read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot read chat_template_path={chat_template_path}: {error.strerror}") from error
    return model, tokenizer
