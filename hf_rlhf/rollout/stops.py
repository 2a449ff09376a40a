"""The tokens that end a completion: those of the model, tokenizer and run, and the one that closes a chat turn."""

import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from hf_rlhf.data.tokens import NOTHING
from hf_rlhf.data.turns import TurnEnd, end_of_turn
from hf_rlhf.distributed import rank
from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import base_of
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.types import Model

logger = logging.getLogger(__name__)


def stop_token_ids(causal_lm, tokenizer, sampling: Sampling) -> list[int]:
    """Return the ids that end a completion: the end tokens of generation config, tokenizer and caller."""
    ids = {*configured_end_ids(causal_lm), *sampling.stop_token_ids}
    ids |= set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    vocab_size = causal_lm.config.get_text_config().vocab_size
    if outside := sorted(token for token in ids if not 0 <= token < vocab_size):
        raise InputError(f"stop token ids {outside} are outside of the model's vocabulary of {vocab_size}")
    return sorted(ids)


def configured_end_ids(causal_lm) -> list[int]:
    """Return the end tokens of a model's generation config, at which plain `generate` stops."""
    configured = getattr(causal_lm.generation_config, "eos_token_id", None)
    configured = configured if isinstance(configured, list) else [configured]
    return [token for token in configured if token is not None]


def unknown_end_of_turn(
    causal_lm,
    tokenizer,
    sampling: Sampling,
    row: Mapping[str, Any] = NOTHING,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> TurnEnd | None:
    """Return what the chat template closes an answer with when nothing of it ends a completion; else None.

    `row` and `chat_template_kwargs` are those of `end_of_turn`.
    """
    end = end_of_turn(tokenizer, row, chat_template_kwargs)
    if end is None or set(end.tokens) & set(stop_token_ids(causal_lm, tokenizer, sampling)):
        return None
    return None if any(text in end.text for text in sampling.stop_strings) else end


def stop_at_end_of_turn(
    model: Model,
    tokenizer,
    row: Mapping[str, Any],
    sampling: Sampling,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Make the token that closes a chat turn an end token of the model, for prompts that use the chat template.

    It is added to the generation config, which every engine reads and which is saved with a full model; a warning says
    so when the run did not know it. Does nothing for plain text.

    Args:
        model: the policy, with or without a PEFT wrapper.
        tokenizer: its tokenizer.
        row: one row for all: `prompt` and `prompt_ids`, and `tools` and `chat_template_kwargs`, where it has them. Text
            that holds the token was rendered by the template before.
        sampling: of the run.
        chat_template_kwargs: what the template gets where the row does not say otherwise.
    """
    causal_lm = base_of(model)
    end = end_of_turn(tokenizer, row, chat_template_kwargs)
    if end is None or (isinstance(row["prompt"], str) and not set(end.tokens) & set(row["prompt_ids"])):
        return
    known = stop_token_ids(causal_lm, tokenizer, sampling)
    if unknown := unknown_end_of_turn(causal_lm, tokenizer, sampling, row, chat_template_kwargs):
        _warn(_message(unknown, tokenizer.convert_ids_to_tokens(known)))
    configured = configured_end_ids(causal_lm)
    if end.tokens and not set(end.tokens) & set(configured):
        closing = next((token for token in end.tokens if token in known), end.tokens[0])
        causal_lm.generation_config.eos_token_id = [*configured, closing]


def _message(end: TurnEnd, known: list[str]) -> str:
    said = (
        f"The chat template closes an answer with {end.text!r}, which is not among the model's end tokens"
        f" ({', '.join(known) or 'none'})"
    )
    if not end.tokens:
        return (
            f"{said} and is no single token of the tokenizer, so completions continue after a finished answer. Set"
            f" stop_strings to [{end.text!r}], or add it to the tokenizer and train the model on it"
        )
    return (
        f"{said}: completions would continue after a finished answer. It ends them from here on, as if"
        f" stop_token_ids=[{end.tokens[0]}] were set. A full model is saved with it. For an adapter, pass it to"
        " `generate` as eos_token_id"
    )


@lru_cache
def _warn(message: str) -> None:
    """Warn once in a process, however often it is found."""
    if rank() == 0:
        logger.warning(message)
