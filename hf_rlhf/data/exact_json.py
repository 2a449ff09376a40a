"""The `Json` feature of `datasets` without its rounding; `json_columns.py` makes the columns that have it."""

import json
from typing import Any

from datasets import Json


class ExactJson(Json):
    """`datasets.Json`, but 0.7 stays 0.7, and integers, NaN and text stay what they are, whatever their size or look.

    `Json` reads by ujson (0.7 becomes 0.7000000000000001, 2**64 an error), and writes text that looks like JSON
    unquoted.
    """

    def encode_example(self, example_data: Any) -> str | None:
        """Return the JSON text of a value; None is a missing value. Raises TypeError for bytes, dates and the like."""
        return None if example_data is None else json.dumps(example_data, ensure_ascii=False)

    def decode_example(self, example_data: str | None, token_per_repo_id: Any = None) -> Any:
        """Return the value of a JSON text."""
        return None if example_data is None else json.loads(example_data)
