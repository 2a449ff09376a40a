"""The tokens that a fine-tuning learns from, and whether rows and chat template can say so."""

import re
from typing import Any

from hf_rlhf.data.prepared import PreparedSet
from hf_rlhf.errors import InputError

_COMPLETIONS = "give rows with prompt and completion, whose completions alone are trained on"


def require_fitting_loss(rows: PreparedSet, training: Any, tokenizer: Any) -> None:
    """Raise `InputError` for a flag of trl's `SFTConfig` about the loss that these rows or tokenizer cannot serve."""
    columns, source = rows.report.columns, rows.report.source
    conversational = rows.report.layout.endswith("messages")
    if training.completion_only_loss and columns != ["prompt", "completion"]:
        instead = "Set assistant_only_loss to true, or" if conversational else "Omit it, or"
        raise InputError(
            f"completion_only_loss=True is invalid: the rows of {source} have no completion, only {columns[0]}, and"
            f" every token would be trained on. {instead} {_COMPLETIONS}"
        )
    if columns == ["text"] and training.dataset_text_field != "text":
        raise InputError(
            f"dataset_text_field={training.dataset_text_field} is invalid: texts are read from the column text. Rename"
            " the column, and omit the flag"
        )
    if not training.assistant_only_loss:
        return
    if not conversational:
        raise InputError(
            f"assistant_only_loss=True is invalid: the rows of {source} are text, not messages. Omit it, or"
            f" {_COMPLETIONS}"
        )
    _require_marked_template(tokenizer)


def _require_marked_template(tokenizer: Any) -> None:
    from trl import get_training_chat_template

    if re.search(r"\{%-?\s*generation\b", str(tokenizer.chat_template)):
        return
    try:
        get_training_chat_template(tokenizer)  # which trl's trainer takes, for the templates that it knows
    except ValueError as error:
        raise InputError(
            f"assistant_only_loss=True is invalid: the chat template of {tokenizer.name_or_path} does not mark what the"
            " assistant says, and trl knows no version of it that does. Copy the template to a .jinja file, put"
            " {% generation %} and {% endgeneration %} around the assistant's content and the token that ends its"
            f" turn, and give the file as chat_template_path; or {_COMPLETIONS}"
        ) from error
