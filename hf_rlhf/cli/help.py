"""The page that `hf-rlhf <command> --help` prints: this project's flags in groups, and the most used inherited ones."""

import inspect
import re
import shutil
import textwrap
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

USED_MOST = (
    "output_dir", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "num_train_epochs",
    "learning_rate", "lr_scheduler_type", "warmup_steps", "max_grad_norm", "gradient_checkpointing", "save_steps",
    "save_total_limit", "eval_strategy", "eval_steps", "report_to", "seed", "push_to_hub", "hub_model_id", "lora_r",
    "lora_alpha", "load_in_4bit", "attn_implementation",
)  # fmt: skip
"""Flags of transformers and trl that most runs set."""
_TITLES = {
    "ModelArguments": "Model",
    "DataArguments": "Data",
    "PPOArguments": "Rewards and texts",
    "PlanArguments": "Plan",
}
_COLUMN = 34  # where the meaning of a flag begins


def wants_help(argv: Sequence[str]) -> bool:
    """Return whether a command line asks for help."""
    return "-h" in argv or "--help" in argv


def print_help(parser: ArgumentParser, dataclasses: Sequence[Any], argv: Sequence[str]) -> None:
    """Print the page of a command, or with `--help all` every flag that its parser takes."""
    if "all" in argv:
        parser.print_help()
    else:
        print(help_page(parser.prog, dataclasses, width=min(shutil.get_terminal_size().columns, 120)))


def help_page(prog: str, dataclasses: Sequence[Any], width: int = 100) -> str:
    """Return the page of a command whose flags are the fields of `dataclasses`."""
    groups = [group for each in dataclasses for group in own_groups(each)]
    own = {field.name for _, group in groups for field in group}
    groups = [(title, [field for field in group if not _has_one_value(field)]) for title, group in groups]
    used_most = [field for field in _fields_by_name(dataclasses, USED_MOST) if field.name not in own]
    if used_most:
        groups.append(("Of transformers and trl, the most used", used_most))
    lines = [f"usage: {prog} [--config FILE.yaml] [--FLAG VALUE ...]", "", *_wrap(_INTRODUCTION, width, "")]
    for title, group in groups:
        lines += ["", f"{title}:"]
        for field in group:
            lines += _lines_of(field, width)
    lines += ["", f"`{prog} --help all` lists every flag, those of transformers and trl included."]
    return "\n".join(lines)


_INTRODUCTION = (
    "Flags are also keys of the YAML file, and the command line wins. The default is in brackets. A list is written"
    " with spaces or commas."
)


def own_groups(dataclass: Any) -> Iterator[tuple[str, list[Field]]]:
    """Yield title and fields of each group of flags that a class of this project defines, in the order of its source.

    A comment on a line of its own begins a group, and is its title.
    """
    known = {field.name: field for field in fields(dataclass) if field.metadata.get("help")}
    for owner in reversed(dataclass.__mro__):
        if not owner.__module__.startswith("hf_rlhf."):
            continue
        own = {name: known[name] for name in inspect.get_annotations(owner) if name in known}
        title, group = _TITLES.get(owner.__name__, "Flags"), []
        for line in inspect.getsource(owner).splitlines() if own else ():
            if comment := re.fullmatch(r"    # (.+)", line):
                if group:
                    yield title, group
                title, group = comment[1], []
            elif (match := re.match(r"    (\w+): ", line)) and match[1] in own:
                group.append(own[match[1]])
        if group:
            yield title, group


def _fields_by_name(dataclasses: Sequence[Any], names: Sequence[str]) -> list[Field]:
    known = {field.name: field for each in dataclasses for field in fields(each)}
    return [known[name] for name in names if name in known]


def _lines_of(field: Field, width: int) -> list[str]:
    default = "" if field.default in (MISSING, None) else f" [{_as_flag(field.default)}]"
    name = f"  --{field.name}{default}"
    text = " ".join(str(field.metadata.get("help", "")).split())
    if field.name in USED_MOST:  # whose libraries explain more than fits here
        text = text.split(". ")[0].removesuffix(".") + "."
    meaning = _wrap(text, width, " " * _COLUMN)
    if len(name) >= _COLUMN:
        return [name, *meaning]
    first, *rest = meaning or [""]
    return [name.ljust(_COLUMN) + first.lstrip(), *rest]


def _has_one_value(field: Field) -> bool:
    """Return whether a flag has to stay as it is, so that `--help all` is the place for it."""
    return str(field.metadata.get("help", "")).startswith("Must stay")


def _as_flag(value: Any) -> str:
    value = getattr(value, "value", value)  # of an enumeration
    return str(value).lower() if isinstance(value, bool) else str(value)


def _wrap(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
