"""Answers to every form as rows to train on: preferences, demonstrations, labels and ratings."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.feedback.conversion.converted import Converted, convert
    from hf_rlhf.feedback.conversion.rules import ConversionRules

_HOMES = {
    "ConversionRules": "hf_rlhf.feedback.conversion.rules",
    "Converted": "hf_rlhf.feedback.conversion.converted",
    "convert": "hf_rlhf.feedback.conversion.converted",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = ["ConversionRules", "Converted", "convert"]
