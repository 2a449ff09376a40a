"""Flat keys, as in TRL's scripts: from a YAML file, from the command line, or both (the command line wins)."""

import copy
import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import torch
from trl import ModelConfig, RewardConfig, SFTConfig, TrlParser

from hf_rlhf.compat.names import unknown_name
from hf_rlhf.credentials import refuse_secrets
from hf_rlhf.errors import InputError
from hf_rlhf.models.load import EMBEDDED_MODEL
from hf_rlhf.models.precision import NATIVE, native_dtype
from hf_rlhf.recipes.config_files import describe, fits, read_config_file

logger = logging.getLogger(__name__)


def flag(default, text: str):
    """A field of a dataclass of flags, with its help."""
    return field(default=default, metadata={"help": text})


@dataclass
class ModelArguments(ModelConfig):
    """TRL's model flags, with the defaults that suit one small machine: a frozen base and LoRA on every linear layer."""

    model_name_or_path: str = flag(EMBEDDED_MODEL, "Hub name, folder, adapter folder, or an embedded model.")
    dtype: str = flag(
        NATIVE,
        "Dtype of the frozen base: native (bfloat16 where the device multiplies it in hardware, else float32), bfloat16,"
        " float16, float32, or auto (that of the checkpoint).",
    )
    use_peft: bool = flag(True, "Train LoRA adapters; false trains every weight.")
    lora_dropout: float = flag(0.0, "LoRA dropout; PPO switches it off in any case.")
    lora_target_modules: list[str] | None = flag(None, "Layers that get LoRA; by default every linear one.")

    def __post_init__(self):
        self.lora_target_modules = self.lora_target_modules or ["all-linear"]
        super().__post_init__()

    def on(self, device: torch.device) -> "ModelArguments":
        """Return these flags with the `dtype` that `native` stands for on `device`.

        A bfloat16 base that was asked for on a device that only emulates it is answered with a warning.
        """
        native = native_dtype(device)
        if self.dtype == NATIVE:
            resolved = copy.copy(self)
            resolved.dtype = str(native).removeprefix("torch.")
            return resolved
        if self.dtype == "bfloat16" and native != torch.bfloat16:
            logger.warning(
                "dtype=bfloat16: this %s does not multiply bfloat16 in hardware, so the run takes several times as long as"
                " in float32. Set dtype to float32, or leave it out",
                device.type.upper(),
            )
        return self

    def load_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for `from_pretrained`."""
        from trl import get_quantization_config

        kwargs: dict[str, Any] = {"dtype": self.dtype, "revision": self.model_revision}
        if self.attn_implementation:
            kwargs["attn_implementation"] = self.attn_implementation
        if quantization := get_quantization_config(self):
            kwargs["quantization_config"] = quantization
        return kwargs


@dataclass
class DataArguments:
    """Which rows to train and evaluate on, and whether a run goes on."""

    dataset_name: str | None = flag(None, "Hub name, folder, or .jsonl, .json, .csv, .parquet file (also .gz).")
    dataset_config: str | None = flag(None, "Configuration of a Hub data set.")
    dataset_train_split: str = flag("train", "Split to train on.")
    dataset_test_split: str = flag("test", "Split to evaluate on, when eval_strategy or do_eval asks for it.")
    eval_dataset_name: str | None = flag(None, "A data set of its own to evaluate on; else a split of dataset_name.")
    max_train_samples: int | None = flag(None, "Use only the first rows.")
    max_eval_samples: int | None = flag(None, "Evaluate only on the first rows.")
    skip_bad: int = flag(0, "Leave out up to so many rows of each set that cannot be used; one more is an error.")
    resume: str | None = flag(
        None,
        "auto (the newest whole checkpoint of output_dir, or a new run if there is none), last (the same, but an error if"
        " there is none), a checkpoint, or never.",
    )


@dataclass
class PPOArguments(DataArguments):
    """What to train on, and what for."""

    reward_model_path: str | None = flag(None, "Folder or Hub name of a trained reward model.")
    reward_funcs: list[str] | None = flag(None, "More rewards: models, or functions as module:name or file.py:name.")
    ptx_dataset_name: str | None = flag(None, "Texts for the language-model loss of PPO-ptx, with ptx_coef.")
    ptx_dataset_config: str | None = flag(None, "Their configuration, of a Hub data set.")
    ptx_dataset_split: str = flag("train", "Their split.")
    chat_template_path: str | None = flag(None, "A Jinja file to use as the tokenizer's chat template.")


@dataclass
class RewardArguments(DataArguments):
    """What to train the reward model on."""

    save_merged: bool = flag(True, "Also write merged/, a plain classifier that pipeline() loads.")


def _fit_to_machine(training: Any) -> None:
    """Set what depends on the device, before TRL sets its own; refuse a push before the end."""
    if str(training.hub_strategy) not in ("end", "HubStrategy.END"):
        raise InputError(f"hub_strategy={training.hub_strategy} must be end: a push in the background may fail unseen")
    training.use_cpu = training.use_cpu or not torch.accelerator.is_available()  # bf16 on a CPU has to be asked for
    if training.bf16 is None and not training.fp16:  # TRL's own default is True
        training.bf16 = native_dtype("cpu" if training.use_cpu else None) == torch.bfloat16


@dataclass
class RewardTrainingArguments(RewardConfig):
    """TRL's `RewardConfig`; gradient checkpointing is off unless asked for, as LoRA rarely needs what it costs."""

    gradient_checkpointing: bool | None = flag(None, "Trade compute for memory.")
    logging_nan_inf_filter: bool = flag(False, "Must stay off: it would log a NaN loss as 0.")
    hub_strategy: str = flag("end", "Must be end: what Trainer pushes before, in the background, may fail unseen.")

    def __post_init__(self):
        _fit_to_machine(self)
        super().__post_init__()


@dataclass
class SFTTrainingArguments(SFTConfig):
    """TRL's `SFTConfig`; gradient checkpointing is off unless asked for."""

    gradient_checkpointing: bool | None = flag(None, "Trade compute for memory.")
    logging_nan_inf_filter: bool = flag(False, "Must stay off: it would log a NaN loss as 0.")
    hub_strategy: str = flag("end", "Must be end: what Trainer pushes before, in the background, may fail unseen.")

    def __post_init__(self):
        _fit_to_machine(self)
        super().__post_init__()


class _Parser(TrlParser):
    """Raises `InputError` where argparse would print a page and exit."""

    def error(self, message: str):
        raise InputError(message)


def parse_arguments(dataclasses: Sequence[Any], argv: Sequence[str], prog: str) -> tuple[Any, ...]:
    """Read `--config file.yaml` and `--key value` into instances of `dataclasses`.

    Raises `InputError` for an unknown key (with a suggestion), a value of the wrong type, an access token or a broken
    YAML file.
    """
    _refuse_secret_options(argv, prog)
    parser = _Parser(list(dataclasses), prog=prog, allow_abbrev=False)
    known = [action.dest for action in parser._actions]
    argv = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    config = None
    if "--config" in argv:
        position = list(argv).index("--config") + 1
        if position == len(argv):
            raise InputError("--config needs a file")
        kinds = {name: kind for each in dataclasses for name, kind in get_type_hints(each).items()}
        config = Path(argv[position])
        _check_config(config, parser, kinds)
    try:
        *parsed, unknown = parser.parse_args_and_config(list(argv), return_remaining_strings=True)
    except InputError as error:
        raise InputError(_with_place(str(error), argv, config)) from error
    except Exception as error:  # the settings of transformers raise what they like, an OverflowError too
        raise InputError(str(error) or type(error).__name__) from error
    if unknown:
        raise InputError(unknown_name(unknown[0].split("=")[0].lstrip("-"), known, "the command line"))
    return tuple(parsed)


def _check_config(file: Path, parser: TrlParser, kinds: Mapping[str, Any]) -> None:
    """Raise `InputError` unless the file is YAML of known keys, with values of the kinds that they take, and no token."""
    content = read_config_file(file)
    refuse_secrets(content, str(file))
    takes_list = {action.dest for action in parser._actions if action.nargs in ("+", "*")}
    for key, value in content.items():
        if key == "env":
            _check_environment(value, file)
        elif key not in kinds:
            raise InputError(unknown_name(str(key), list(kinds), _place(file, key)))
        elif key in takes_list and value is not None and not isinstance(value, list):
            raise InputError(f"{key}: {value!r} in {_place(file, key)} must be a list, as in `{key}: [{value}]`")
        elif not fits(value, kinds[key]):
            raise InputError(f"{key}: {value!r} in {_place(file, key)} does not fit: it takes {describe(kinds[key])}")


def _with_place(message: str, argv: Sequence[str], config: Path | None) -> str:
    """The message of argparse; for a value that came from the config file, with its line there."""
    named = re.match(r"argument --(\w+)\S*: ", message)
    on_command_line = {arg.split("=")[0].lstrip("-").replace("-", "_") for arg in argv if arg.startswith("--")}
    if config is None or named is None or named[1] in on_command_line:
        return message
    return f"{named[1]} in {_place(config, named[1])}: {message[named.end() :]}"


def _place(file: Path, key: object) -> str:
    """The file with the line of a key; the file alone where it is written in an unusual way."""
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    number = next(
        (n for n, line in enumerate(lines, 1) if re.match(rf"[\"']?{re.escape(str(key))}[\"']?\s*:", line)), 0
    )
    return f"{file}:{number}" if number else str(file)


def _check_environment(variables: Any, file: Path) -> None:
    if not isinstance(variables, dict) or not all(isinstance(name, str) and name for name in variables):
        raise InputError(f"env in {file} must hold `NAME: value` lines")
    if bad := [name for name, value in variables.items() if "=" in name or "\0" in f"{name}{value}"]:
        raise InputError(f"env in {file}: {bad[0]!r} cannot be a variable of the environment")


def _refuse_secret_options(argv: Sequence[str], prog: str) -> None:
    """Tokens on the command line end up in config.yaml, and before that in every list of processes."""
    for option, following in itertools.zip_longest(argv, argv[1:]):
        name, given, value = option.partition("=")
        if name.startswith("--"):
            value = value if given else "" if (following or "").startswith("--") else following
            refuse_secrets({name.removeprefix("--"): value}, prog)
        else:
            refuse_secrets({"an option": option}, prog)


def peft_config(model_args: ModelArguments, **overrides: Any):
    """The LoRA config that the flags describe, or None for full fine-tuning."""
    from trl import get_peft_config

    config = get_peft_config(model_args)
    for name, value in overrides.items():
        if config is not None:
            setattr(config, name, value)
    return config
