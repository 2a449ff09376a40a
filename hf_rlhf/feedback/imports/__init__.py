"""Feedback from and to the files of other tools: Argilla and Label Studio."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.feedback.imports.argilla import from_argilla, to_argilla
    from hf_rlhf.feedback.imports.imported import FieldNames, Imported
    from hf_rlhf.feedback.imports.label_studio import from_label_studio, to_label_studio

_HOMES = {
    "FieldNames": "hf_rlhf.feedback.imports.imported",
    "Imported": "hf_rlhf.feedback.imports.imported",
    "from_argilla": "hf_rlhf.feedback.imports.argilla",
    "from_label_studio": "hf_rlhf.feedback.imports.label_studio",
    "to_argilla": "hf_rlhf.feedback.imports.argilla",
    "to_label_studio": "hf_rlhf.feedback.imports.label_studio",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = ["FieldNames", "Imported", "from_argilla", "from_label_studio", "to_argilla", "to_label_studio"]
