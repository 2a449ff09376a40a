"""Folders of shards, such as a cloned dataset repository, read as `datasets.load_dataset(folder)` finds them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_rlhf.credentials import printable
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder

_REMOTE = re.compile(r"\b(?!zip\b|file\b)[a-z0-9+]+://")
_SAYS_WHERE = {"name", "version", "data_dir", "data_files", "description", "features"}


class Shards(NamedTuple):
    """The splits that `datasets` finds in a folder; `builder` is None and `reason` says why where it finds none.

    `plain` is whether they are read without options, such as the separator of a .csv.
    """

    builder: DatasetBuilder | None
    splits: Mapping[str, list[Path]]
    plain: bool = True
    reason: str = ""


def names_files(folder: Path) -> bool:
    """Return whether the folder's README.md says which files make up the splits.

    Raises InputError for broken metadata.
    """
    return any(_named_files(folder))


def find_shards(folder: Path, config_name: str | None) -> Shards:
    """Return the files of each split, by the names of files and folders or by `configs` in README.md.

    No network is used.

    Raises InputError for a README.md that names files on the network.
    """
    import datasets

    if remote := [name for name in _named_files(folder) if _REMOTE.search(name)]:
        raise InputError(
            f"{folder / 'README.md'}: the configs name {remote[0]}, which is not in this folder. Download the files,"
            " or give the Hub name of the set"
        )
    try:
        builder = datasets.load_dataset_builder(str(folder.absolute()), config_name)
    except Exception as error:  # the resolver and the builders each raise their own types
        return Shards(None, {}, reason=_short(error))
    files: Mapping[Any, list[str]] = builder.config.data_files or {}  # pyright: ignore[reportAssignmentType]
    splits = {str(split): [Path(file) for file in found] for split, found in files.items()}
    return Shards(builder, splits, plain=_is_plain(builder.config))


def read_split(shards: Shards, folder: Path, split: str) -> Dataset:
    """Return a split through the builder of `datasets`, which copies it into its cache."""
    assert shards.builder is not None
    try:
        shards.builder.download_and_prepare()
        return shards.builder.as_dataset(split=split)  # pyright: ignore[reportReturnType]
    except Exception as error:  # as above; what a builder met is the cause of what it raises
        reason = _short(error.__cause__ or error)
        files = ", ".join(path.name for path in shards.splits[split][:3])
        raise InputError(
            f'{folder}: `datasets` cannot read split "{split}" ({files}): {reason}. Mend or download the files again'
        ) from error


def _short(error: BaseException) -> str:
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0], 200)


def _is_plain(config: Any) -> bool:
    options = [field.name for field in fields(config) if field.name not in _SAYS_WHERE]
    plain = type(config)()
    return all(getattr(config, name) == getattr(plain, name) for name in options)


def _named_files(folder: Path) -> Iterator[str]:
    """Return the files and folders that `configs` in README.md and .huggingface.yaml name.

    Raises InputError for broken YAML.
    """
    import yaml
    from huggingface_hub import metadata_load

    found: dict[str, Any] = {}
    for path in (folder / "README.md", folder / ".huggingface.yaml"):
        try:
            if path.is_file():
                found |= (
                    metadata_load(path) if path.suffix == ".md" else yaml.safe_load(path.read_text("utf-8"))
                ) or {}
        except (ValueError, TypeError, OSError, yaml.YAMLError) as error:
            raise InputError(
                f"{path}: the metadata cannot be read ({_short(error)}). Mend it, or name a file"
            ) from error
    configs = found.get("configs")
    for config in configs if isinstance(configs, list) else []:
        yield from _texts([config.get("data_files"), config.get("data_dir")] if isinstance(config, dict) else config)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)
