"""Columns whose rows hold dicts: each row keeps its own keys and the types of its values.

Arrow stores the dicts of a column as one struct: a key that only some of them have is None in the others, and a key has
one type. Two rows with calls of different tools would so be given each other's argument names. Here such a column is
stored as JSON text, which `datasets` decodes when a row is read. Dicts that are all alike stay a struct.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_Set = TypeVar("_Set", "Dataset", "IterableDataset")

ROW_OPTIONS = ("tools", "chat_template_kwargs")
"""Columns that say how the messages of their row are rendered, as in trl.

Either may be JSON text, or None for nothing.
"""

TEMPLATE_COLUMNS = ("messages", "prompt", "completion", "chosen", "rejected", *ROW_OPTIONS)
"""Columns of a row that a chat template reads."""


def make_dataset(columns: Mapping[str, Sequence[Any]]) -> Dataset:
    """Return the columns as a set in which each row has exactly the keys and types that it has here.

    Raises what arrow raises, or ValueError, for values of several kinds in one column and for half a surrogate pair.
    """
    from datasets import Dataset

    return decode_exactly(Dataset.from_dict({name: _to_column(values) for name, values in columns.items()}))


def keep_own_keys(dataset: Dataset) -> Dataset:
    """Return the set with the rows as a chat template should read them, whoever stored them.

    In `TEMPLATE_COLUMNS`, keys of structs that are None are removed at every level, since nothing tells them from those
    that arrow filled in. A None in a list stays, and so does one that was stored as JSON. Where
    `chat_template_kwargs` are missing, they become {}. A set with nothing to change comes back as it is.
    """
    import pyarrow as pa
    from datasets import Dataset

    changed = {}
    for name in [name for name in TEMPLATE_COLUMNS if name in dataset.column_names]:
        column = dataset.data.column(name)
        missing = name == "chat_template_kwargs" and column.null_count > 0
        if not missing and not any(map(_has_empty_keys, column.chunks)):
            continue
        try:
            values = read_values(dataset, [name])[name]
            changed[name] = _to_json([own_keys(name, value, dataset.features[name]) for value in values])
        except (TypeError, pa.ArrowException, ArithmeticError, ValueError):  # images; dates that Python cannot hold
            continue
    if not changed:
        return decode_exactly(dataset)
    made = Dataset.from_dict(changed)
    return put_beside(dataset.remove_columns(list(changed)), made).select_columns(dataset.column_names)


def keep_own_keys_of_stream(dataset: IterableDataset) -> IterableDataset:
    """Like `keep_own_keys`, for a stream: each row is changed when its turn comes."""
    dataset, features = decode_exactly(dataset), dataset.features or {}

    def with_own_keys(row: Mapping[str, Any]) -> dict[str, Any]:
        found = [name for name in TEMPLATE_COLUMNS if name in row]
        return {name: own_keys(name, row[name], features.get(name)) for name in found}

    return dataset.map(with_own_keys)


def put_beside(left: Dataset, right: Dataset) -> Dataset:
    """Return one set with the columns of both, which have the same number of rows."""
    from datasets import concatenate_datasets

    return decode_exactly(concatenate_datasets([left, right], axis=1) if left.column_names else right)


def read_values(dataset: Dataset, names: Sequence[str]) -> dict[str, list[Any]]:
    """Return these columns as Python lists, whatever format is set.

    JSON text is decoded, and else nothing: images are bytes.
    """
    columns = dataset.with_format("arrow").select_columns(list(names))[:].to_pydict()  # pyright: ignore[reportAttributeAccessIssue]
    for name in names:
        if holds_json(feature := dataset.features[name]):
            columns[name] = [_decode(value, feature) for value in columns[name]]
    return columns


def own_keys(name: str, value: Any, feature: Any) -> Any:
    """Return one decoded value of a column of `TEMPLATE_COLUMNS` without the keys of structs that are None."""
    if value is None:
        return {} if name == "chat_template_kwargs" else None
    return _without_empty_keys(value, feature)


def _without_empty_keys(value: Any, feature: Any) -> Any:
    from datasets import Json

    if isinstance(feature, Json):
        return value
    if isinstance(value, dict):
        key_features = feature if isinstance(feature, dict) else {}
        return {k: _without_empty_keys(each, key_features.get(k)) for k, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_empty_keys(each, getattr(feature, "feature", None)) for each in value]
    return value


def _decode(value: Any, feature: Any) -> Any:
    from datasets import Json

    if value is None:
        return None
    if isinstance(feature, Json):
        return json.loads(value)
    if isinstance(feature, dict):
        return {key: _decode(each, feature[key]) for key, each in value.items()}
    return [_decode(each, feature.feature) for each in value] if hasattr(feature, "feature") else value


def decode_exactly(dataset: _Set) -> _Set:
    """Return the set with every JSON column decoded by `ExactJson`; nothing is read or copied."""
    from datasets import Features

    features = dataset.features or {}
    if not any(map(holds_json, features.values())):
        return dataset
    dataset = dataset.select_columns(list(features))  # a copy, whose features are its own
    dataset.info.features = Features({name: _exact(feature) for name, feature in features.items()})
    return dataset


def holds_json(feature: Any) -> bool:
    """Return whether any part of a column is stored as JSON text."""
    from datasets import Json

    parts = feature.values() if isinstance(feature, dict) else [feature.feature] if hasattr(feature, "feature") else []
    return isinstance(feature, Json) or any(map(holds_json, parts))


def _exact(feature: Any) -> Any:
    from datasets import Json

    from hf_rlhf.data.exact_json import ExactJson

    if isinstance(feature, dict):
        return {key: _exact(each) for key, each in feature.items()}
    if hasattr(feature, "feature"):
        return replace(feature, feature=_exact(feature.feature))
    return ExactJson() if isinstance(feature, Json) else feature


# --- from values to arrow ----------------------------------------------------------------------------------------


def kind_of(value: Any) -> str:
    """Return the kind of value that a column is made of: `str`, `list of dict`."""
    name = type(value).__name__
    return f"{name} of {kind_of(value[0])}" if isinstance(value, list) and value else name


def fits_dicts(value: Any, kind: str) -> bool:
    """Return whether a value can stand in a column of dicts, or of lists of them, of this kind."""
    if value is None or value == []:
        return True
    try:
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is not UTF-8
    except ValueError:
        return False
    return kind_of(value) == kind


def _to_column(values: Sequence[Any]) -> Any:
    """Return the values for `Dataset.from_dict`: as JSON text where arrow would not give dicts back as they are."""
    import pyarrow as pa

    if not _holds_dict(values):
        return values
    kinds = {kind_of(value) for value in values if value is not None and value != []}
    if len(kinds) > 1:
        raise ValueError(f"values of several kinds: {', '.join(sorted(kinds))}")
    try:
        return pa.array(values) if _are_alike(values) else _to_json(values)
    except (pa.ArrowException, ArithmeticError):  # integers of more than 64 bits
        return _to_json(values)


def _to_json(values: Sequence[Any]) -> Any:
    import pyarrow as pa

    from hf_rlhf.data.exact_json import ExactJson

    texts = pa.array(map(ExactJson().encode_example, values), pa.string())
    return pa.ExtensionArray.from_storage(pa.json_(), texts)


def _holds_dict(value: Any) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, Sequence) and not isinstance(value, str) and any(map(_holds_dict, value))
    )


def _are_alike(values: Sequence[Any]) -> bool:
    """Return whether arrow gives these back as they are: dicts at one place have the same keys, none of them None."""
    kinds = set(map(type, values)) - {type(None)}
    if not kinds:
        return True
    if len(kinds) > 1:
        return False
    values = [value for value in values if value is not None]
    if dict in kinds:
        keys = list(values[0])
        same = bool(keys) and all(list(value) == keys for value in values)
        columns = ([value[key] for value in values] for key in keys) if same else ()
        return same and all(None not in column and _are_alike(column) for column in columns)
    return list not in kinds or _are_alike([each for value in values for each in value])


def _has_empty_keys(array: Any) -> bool:
    """Return whether an arrow array has structs in which a key is None."""
    import pyarrow as pa

    if isinstance(array, pa.StructArray):
        fields = map(array.field, range(array.type.num_fields))
        return any(field.null_count or _has_empty_keys(field) for field in fields)
    lists = isinstance(array, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray))
    return lists and _has_empty_keys(array.flatten())
