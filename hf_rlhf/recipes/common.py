"""What the recipes share: loading rows and models, and the result they return."""

from dataclasses import dataclass, field
from pathlib import Path

from hf_rlhf.data.files import load_rows
from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import adapter_base
from hf_rlhf.models.load import load_causal_lm, load_tokenizer
from hf_rlhf.recipes.arguments import DataArguments, ModelArguments


@dataclass(frozen=True)
class RunResult:
    """Where a recipe left its model, and the last numbers it measured."""

    output_dir: Path
    metrics: dict[str, float] = field(default_factory=dict)


def output_folder(training) -> Path:
    """Where a recipe writes; transformers types it as optional."""
    return Path(str(training.output_dir))


def load_split(data: DataArguments, *, evaluation: bool = False):
    """The training rows, or the evaluation rows; returns `(dataset, name for messages)`."""
    if data.dataset_name is None:
        raise InputError("dataset_name is missing; give a Hub name, a folder or a file")
    if evaluation and data.eval_dataset_name:
        name, split, limit = data.eval_dataset_name, data.dataset_train_split, data.max_eval_samples
    elif evaluation:
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


def load_model_and_tokenizer(model_args: ModelArguments, chat_template_path: str | None = None):
    """The causal LM that the flags name, as a `PeftModel` when they name an adapter, and its tokenizer."""
    from peft import PeftModel

    name = model_args.model_name_or_path
    base = adapter_base(name)
    model = load_causal_lm(base or name, **model_args.load_kwargs())
    if base is not None:
        model = PeftModel.from_pretrained(model, name)
    tokenizer = load_tokenizer(name if base is None or (Path(name) / "tokenizer_config.json").is_file() else base)
    if chat_template_path is not None:
        try:
            tokenizer.chat_template = Path(chat_template_path).read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot read chat_template_path={chat_template_path}: {error.strerror}") from error
    return model, tokenizer
