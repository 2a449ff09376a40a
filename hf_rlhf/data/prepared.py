"""Prepared sets: rows that were checked, counted and tokenized once, and the settings that this was done with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_rlhf.data.report import SetReport
from hf_rlhf.data.tokens import NOTHING
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


class TokenizerState(NamedTuple):
    """A tokenizer as it was: equal only for the same object, and only while its ids depend on the same settings."""

    tokenizer: Any
    chat_template: Any
    size: int
    special_tokens: Mapping[str, Any]
    added_to_each_text: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> TokenizerState:
        """Return the tokenizer as it is now."""
        added = tokenizer.num_special_tokens_to_add()
        return cls(tokenizer, tokenizer.chat_template, len(tokenizer), dict(tokenizer.special_tokens_map), added)


class PreparedSet(NamedTuple):
    """The rows to use, what was found, and where each of these rows stands.

    Recipes make one of each set, print its report, and give the set itself to the trainer, which tokenizes no row of it
    again. `made_with` are the settings of the tokenization. `scored_lengths` are the tokens of each prompt by the
    tokenizers of reward models. `fingerprints` has a digest of each different row that was read.
    """

    dataset: Dataset
    report: SetReport
    place: Callable[[int], str]
    made_with: Mapping[str, Any] = NOTHING
    scored_lengths: Sequence[tuple[TokenizerState, Sequence[int]]] = ()
    fingerprints: frozenset[bytes] = frozenset()

    def require_made_with(self, settings: Mapping[str, Any], *, source: str) -> PreparedSet:
        """Return this set. Raises InputError unless it was made with exactly these settings."""
        other = [name for name in {**settings, **self.made_with} if settings.get(name) != self.made_with.get(name)]
        if other or not self.made_with:
            differs = ", ".join(other) or "settings"
            raise InputError(
                f"{source} is invalid: it was prepared with another {differs} than this trainer has. Give the trainer"
                " the rows as a datasets.Dataset, and it prepares them, or prepare them with its settings."
            )
        return self

    def lengths_for(self, tokenizer: PreTrainedTokenizerBase) -> Sequence[int] | None:
        """Return the tokens of each prompt by a reward model's tokenizer; None if they were not counted."""
        state = TokenizerState.of(tokenizer)
        return next((lengths for counted, lengths in self.scored_lengths if counted == state), None)


def rows_of(prepared: Any) -> Any:
    """Return the dataset of a prepared set, or of each of several by name; a stream or None stays as it is."""
    if isinstance(prepared, Mapping):
        return {name: rows_of(each) for name, each in prepared.items()}
    return prepared.dataset if isinstance(prepared, PreparedSet) else prepared
